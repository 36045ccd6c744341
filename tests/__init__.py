import pytest

# a failing assert in there shows its values, too
pytest.register_assert_rewrite("tests.support")
