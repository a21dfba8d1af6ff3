"""What holds a compiled program: the target pass, the encoder of references, masks from prompts, and their devices."""
