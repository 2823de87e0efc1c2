"""Files that other processes read: folders on any filesystem, leases, tensors, checkpoints."""
