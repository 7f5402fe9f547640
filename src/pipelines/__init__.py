"""Systems that train nothing and answer like a captioner (``contracts.Speaker``), built around an encoder and data."""
