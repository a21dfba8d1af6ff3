"""Pages of links, as which web servers list their folders: bytes of a stranger, read within limits.

fsspec reads such a page whole, however long it is or takes, and looks for links in it by an expression whose time grows
with the square of what begins as a link and never ends.
"""

import asyncio
import errno
import re
from collections.abc import Iterator

import aiohttp

MAX_PAGE = 2**27
"""Bytes of one page: a million links have about 100 MB."""
SECONDS = 300.0
"""How long one page may take to arrive."""
_TAG = 10_000  # characters of the beginning of a tag that are looked at
_LINK = re.compile(r"a\s[^>]*?href\s*=\s*[\"']([^\"'>]+)", re.I)
_ADDRESS = re.compile(r"https?://[A-Za-z0-9@:%_+.~#?&/=-]{1,8192}")


class Page(aiohttp.ClientResponse):
    """An answer whose text is that of a page of links, with nothing but the links."""

    async def text(self, encoding: str | None = None, errors: str = "strict") -> str:
        """The links, an `<a>` each, as fsspec looks for them. Raises `OSError` where the page is beyond a limit."""
        page = bytearray()
        async with asyncio.timeout(SECONDS):
            async for part in self.content.iter_chunked(2**16):
                page += part
                if len(page) > MAX_PAGE:
                    raise OSError(errno.EFBIG, f"the page of links is larger than {MAX_PAGE:,} bytes")
        try:
            text = page.decode(encoding or self.charset or "utf-8", "ignore")
        except LookupError:  # the server names no encoding that there is
            text = page.decode("utf-8", "ignore")
        return "\n".join(f'<a href="{link}">' for link in links(text))


def links(text: str) -> Iterator[str]:
    """What a page links to, and the addresses that stand in it."""
    for part in text.split("<"):
        if (found := _LINK.match(part[:_TAG])) is not None:
            yield found[1]
    yield from _ADDRESS.findall(text)
