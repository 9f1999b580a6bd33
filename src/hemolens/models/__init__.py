"""Networks (torch) and the weights that ship (ONNX with a JSON card each). Import the submodule that you need."""
