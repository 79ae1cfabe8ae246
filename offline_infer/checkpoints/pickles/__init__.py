"""Pickles and the files of ``torch.save``, read without executing anything they name.

``machine`` follows a pickle's opcodes, ``reading`` holds the closed table of what they may name, ``numpy_values`` and
``torch_values`` rebuild arrays and tensors with every size checked, ``torch_file`` finds the tensors' bytes.
"""
