# Everything here makes its own virtual environment in .venv: Python 3.11+, pip, git and make do.
.PHONY: demo test engines check bench studies scoreboard site clean
.DELETE_ON_ERROR:

PINS := pyproject.toml constraints.txt scripts/setup

demo: .venv/demo.done  ## plan DeepSeek-V3, compare with Ascend 910C, then move a small run between two pools
	@scripts/demo

test: .venv/test.done engines  ## the whole test suite, the trainer's included; WORKERS=8 for more at a time
	@.venv/bin/python -m pytest -n $${WORKERS:-3} --dist loadfile --no-loadscope-reorder

check: .venv/test.done  ## lint, formatting, strict types
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/python scripts/house

bench: .venv/demo.done  ## how fast the planner answers
	@.venv/bin/python benchmarks/speed.py --json out/speed.json

.venv/demo.done: $(PINS)
	@scripts/setup report
	@touch $@

.venv/test.done: $(PINS)
	@scripts/setup dev,data,parity || { \
	    echo "tests of the trainer will be skipped; to run them: scripts/setup dev,data,parity"; \
	    scripts/setup dev,data; }
	@touch $@ .venv/demo.done

# The parsers of engines that launch files are written for, each in an environment of its own.
engines: .venv/test.done
	@for engine in megatron-lm torchtitan; do scripts/engine-env $$engine || \
	    echo "tests of launch files before $$engine's parser will be skipped"; done

studies: .venv/test.done  ## write the three worked studies anew (some minutes)
	@.venv/bin/python -m krzem.supply.studies docs/studies
	@.venv/bin/python -m krzem.outlook.study docs/studies/outlook.md

scoreboard: .venv/demo.done  ## the page of errors on rows that calibration had not seen
	@.venv/bin/python -m krzem.accuracy.scoreboard docs/scoreboard.md

site: .venv/test.done  ## the documentation as a site: out/site/index.html
	@.venv/bin/python scripts/reference
	@.venv/bin/zensical build --strict

clean:
	rm -rf .venv .venv-engines .cache out
