"""From a folder of radiographs to tensors."""
