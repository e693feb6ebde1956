"""Every public function and layer shows a short example, and the example runs."""

import doctest
import inspect

import pytest

import batchnorm as bn

NAMES = [name for name in bn.__all__ if name != "functional"]
PUBLIC = {name: getattr(bn, name) for name in NAMES} | {"functional.batch_norm": bn.functional.batch_norm}
EXAMPLES = {
    name: thing for name, thing in PUBLIC.items() if not (inspect.isclass(thing) and issubclass(thing, Exception))
}


@pytest.mark.parametrize("name", sorted(name for name in EXAMPLES if not name.endswith(("Row", "Result"))))
def test_the_docstring_has_an_example(name):
    assert ">>> " in (inspect.getdoc(EXAMPLES[name]) or "")


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thing = EXAMPLES[name]
    methods = {key: value for key, value in vars(thing).items() if inspect.isclass(thing) and inspect.getdoc(value)}
    for title, text in {name: inspect.getdoc(thing), **{k: inspect.getdoc(v) for k, v in methods.items()}}.items():
        test = doctest.DocTestParser().get_doctest(text or "", {}, title, None, None)
        result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).run(test)
        assert result.failed == 0
