"""Recipe-driven, cached, verified builds of TensorRT engines for named devices."""

__version__ = "0.1.0"
