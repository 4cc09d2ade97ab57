"""Tests of sumprod; a package, so that test modules can import the shared oracles."""
