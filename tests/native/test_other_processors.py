"""Every area's own tests of its kernels, run with those of processors that this machine lacks. See harness.py."""

from pathlib import Path

import pytest

from tests.native import harness

TESTS = sorted(
    str(path.relative_to(harness.ROOT))
    for path in (harness.ROOT / "tests" / "invariants").glob("test_native_*.py")
)


@pytest.mark.slow
@pytest.mark.parametrize("tests", TESTS, ids=lambda path: Path(path).stem)
@pytest.mark.parametrize("processor", harness.PROCESSORS)
def test_kernels_of_another_processor_pass_the_same_tests(processor: str, tests: str) -> None:
    """Whatever tests/invariants/test_native_*.py say of the instruction sets here, they say of these."""
    try:
        said = harness.run_tests(processor, tests)
    except harness.Missing as reason:
        pytest.skip(str(reason))
    assert " passed" in said and "failed" not in said
