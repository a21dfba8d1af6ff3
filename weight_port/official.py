"""sha256 of the files Meta published. Widely mirrored; Meta itself publishes none."""

OFFICIAL_SHA256 = {
    "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125": "sam2_hiera_tiny",
    "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3": "sam2_hiera_small",
    "d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071": "sam2_hiera_base_plus",
    "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b": "sam2_hiera_large",
    "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69": "sam2.1_hiera_tiny",
    "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38": "sam2.1_hiera_small",
    "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5": "sam2.1_hiera_base_plus",
    "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318": "sam2.1_hiera_large",
    "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428": "dinov2_vitl14",
}


def describe_sha256(digest: str, model: str) -> str:
    """What is known of a file: "official NAME", or unknown and why.

    Args:
        digest: sha256 of the file, hexadecimal.
        model: the variant its tensors show.
    """
    name = OFFICIAL_SHA256.get(digest)
    if name is not None:
        return f"official {name}"
    if model in OFFICIAL_SHA256.values():
        return f"unknown (not Meta's published file of {model})"
    return "unknown (no published checksum on record for this model)"
