# make demo: set up once, then drive a robot under a latency budget and write a report.
# make test: set up once, then run the everyday suite.
# make long: the tests that take too long for every day, four minutes; those of a GPU on the CPU among them.
# make table: write the support tables of policies/README.md anew, from what tests are marked to show.
# make coverage: the same, and which lines it ran; a minute longer.
# make gpu: on a machine with a GPU, what a CPU cannot try, then vivace bench of the zoo in two dtypes.
.PHONY: setup demo test long table coverage check bench gpu clean
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
ROBOT := deploy envs $(filter-out eval/training %.md %.typed,$(wildcard eval/*)) \
  $(patsubst %,policies/%.py,action_kinds arrays backports carry errors extras files plain_data plugins registry spec \
  training_range sampling/real_time_chunking sampling/step_table sampling/streams)
export HF_HUB_OFFLINE = 1
export MUJOCO_GL ?= egl

test: export OMP_NUM_THREADS = 1
long coverage: export OMP_NUM_THREADS = 1
coverage: export COVERAGE_CORE = sysmon

setup: $(STAMP)

$(STAMP): pyproject.toml setup.sh
	bash setup.sh $(VENV)
	touch $@

demo: $(STAMP)
	$(BIN)/vivace eval --job_name=demo --loop.mode=async --eval.lineup=false --eval.curve='[]' --eval.timed_s=12 --accel.judged_episodes=4 --accel.judged_samples=12

test: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --dist worksteal

long: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m long
	$(BIN)/python -m pytest -q -n auto --dist worksteal --on=cpu -k "not does_what_the_cpu_does" tests/gpu

table: $(STAMP)
	$(BIN)/python -m pytest -q tests/contracts tests/deploy tests/gpu -k test_the_tables_in_the_readme --regen-golden

coverage: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --dist worksteal --cov=policies --cov=accel --cov=envs --cov=eval --cov=deploy --cov-report=term:skip-covered

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

gpu: $(STAMP)
	$(BIN)/python -m pytest -q -rs tests/gpu
	$(BIN)/python -c "import torch; exit(0 if torch.cuda.is_available() else 'torch sees no GPU: nothing to bench')"
	for pair in reach:reach-moving push:push-disturbed pick-place:pick-place-v3 halfway:drawer-open-halfway \
	  halfway-tokens:drawer-open-halfway; do for dtype in float32 bfloat16; do \
	  $(BIN)/vivace bench --policy.path=zoo/$${pair%:*} --env.task=$${pair#*:} --policy.device=cuda \
	  --policy.dtype=$$dtype --accel.judged_episodes=2 --accel.judged_samples=8 \
	  --output_dir=outputs/gpu/$${pair%:*}-$$dtype || exit 1; done; done

clean:
	rm -rf build dist outputs *.egg-info policies/zoo/build policies/zoo/*.egg-info deploy/lerobot/build deploy/lerobot/*.egg-info
