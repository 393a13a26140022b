"""Random tests take the same examples in every run, so that a red suite is about the change.

`make search` takes new ones, and more of them: what it finds becomes an `@example`.
"""

import hypothesis

hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", max_examples=1000, deadline=None)
hypothesis.settings.load_profile("suite")
