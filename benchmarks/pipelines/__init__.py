"""The same training as others would write it: one module per library, each a process of its own."""
