"""Reading files that the original research code wrote: nothing in them is ever executed."""
