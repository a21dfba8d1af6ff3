"""What is known of the classes: prototypes and instance means, their analysis, and the file that holds them."""

from ntt_jax.memory.aggregate import Memory, aggregate_memory, instance_mean, memory_from_instance_means

__all__ = ["Memory", "aggregate_memory", "instance_mean", "memory_from_instance_means"]
