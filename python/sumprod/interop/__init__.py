"""Bridges to other packages. Import the one that you need, e.g. `import sumprod.interop.pyroapi`."""
