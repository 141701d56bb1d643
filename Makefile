# make demo: set up once, then drive a robot under a latency budget and write a report.
# make test: set up once, then run the everyday suite.
.PHONY: setup demo test check bench clean
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
ROBOT := deploy envs $(filter-out eval/training,$(wildcard eval/*)) \
  $(patsubst %,policies/%.py,action_kinds arrays backports errors files plain_data registry spec \
  sampling/real_time_chunking sampling/step_table sampling/streams)
export HF_HUB_OFFLINE = 1
export MUJOCO_GL ?= egl

test: export OMP_NUM_THREADS = 1
test: export COVERAGE_CORE = sysmon

setup: $(STAMP)

$(STAMP): pyproject.toml setup.sh
	bash setup.sh $(VENV)
	touch $@

demo: $(STAMP)
	$(BIN)/vivace eval --job_name=demo --loop.mode=async --eval.lineup=false --eval.curve='[]' --eval.timed_s=12 --accel.judged_episodes=4 --accel.judged_samples=12

test: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --cov=policies --cov=accel --cov=envs --cov=eval --cov=deploy --cov-report=term:skip-covered

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/vermin --quiet --target=3.10- --violations --no-tips --eval-annotations $(ROBOT)
	$(BIN)/codespell
	$(BIN)/lint-imports
	mkdir -p build/types/vivace
	for folder in policies accel envs eval deploy; do ln -sfn ../../../$$folder build/types/vivace/$$folder; done
	MYPYPATH=build/types $(BIN)/mypy -p vivace.policies -p vivace.accel -p vivace.envs -p vivace.eval -p vivace.deploy

bench: $(STAMP)
	$(BIN)/vivace bench

clean:
	rm -rf build dist outputs *.egg-info policies/zoo/build policies/zoo/*.egg-info
