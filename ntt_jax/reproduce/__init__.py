"""The published tables on one's own machine: the data they need, the numbers they hold, and a verdict."""
