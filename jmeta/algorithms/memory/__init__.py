"""Methods that adapt by what a policy remembers."""
