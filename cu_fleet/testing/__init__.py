"""For those who extend the fleet: contract suites for backends and stores, fakes, and servers to test against."""
