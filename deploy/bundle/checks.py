"""Does what a manifest says fit together? Before a graph is opened, and before a robot moves.

Every check compares two things that were written apart: the policy's shapes, the graphs' inputs and outputs,
the sizes of the normalisations, the chain of the steps.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np

from vivace.deploy.bundle.form import (
    INSTRUCTION,
    MASK,
    NEXT,
    PAST,
    STATE_TOLD,
    TOKENS,
    Contents,
    Graph,
    Shape,
)
from vivace.deploy.bundle.golden import FOLDER, golden_file
from vivace.deploy.bundle.program import CACHE, CONTEXT, FRESH, NEW, SEEN, WEIGHT, Program
from vivace.deploy.bundle.token_program import TokenProgram
from vivace.policies.arrays import is_image
from vivace.policies.errors import BadBundle
from vivace.policies.plain_data import shown
from vivace.policies.sampling.step_table import remembered
from vivace.policies.spec import ActionRange, PolicySpec

_MAX_NUMBERS = 2**28
"""Of one tensor between two graphs."""
_SAME_TIMESTEP = 1e-6
"""Policies take float32."""
_PLAN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
Shapes = Mapping[str, Shape]


def check_contents(contents: Contents) -> None:
    """Raise `BadBundle` unless the parts of a manifest fit together."""
    check_spec(contents.spec)
    check_normalizations(contents)
    check_names(contents)
    check_relative(contents)
    check_prompts(contents)
    check_graphs(contents)
    check_plans(contents)
    check_golden_files(contents)


def need(is_so: bool, found: str, needed: str) -> None:
    """Raise `BadBundle` unless something is so."""
    if not is_so:
        raise BadBundle(f"the manifest has {found}; needed: {needed}; export it again")


def check_spec(spec: PolicySpec) -> None:
    """Raise `BadBundle` unless sizes and counts of a policy fit together."""
    n, available = spec.n_action_steps, spec.horizon - spec.first_action
    need(n <= available, f"n_action_steps={n} of n_obs_steps={spec.n_obs_steps}", f"at most {available}")
    kinds = len(spec.action_kinds)
    need(kinds == spec.action_dim, f"{kinds} action_kinds", f"one for each of {spec.action_dim} dimensions")
    need(bool(spec.observation_shapes), "no observation", "one or more")
    for key, shape in spec.observation_shapes.items():
        is_known = key.startswith("observation.") and key not in (TOKENS, MASK)
        need(is_known, f"the observation {shown(key)}", "a name that begins with 'observation.'")
        fits = len(shape) == 3 if is_image(key) else bool(shape)
        need(fits, f"{shown(key)} of shape {shape}", "three numbers for a picture, one or more for others")
        need(_numbers(shape) * spec.n_obs_steps <= _MAX_NUMBERS, f"{shown(key)} of shape {shape}", "less")
    if spec.action_range is not None:
        check_action_range(spec.action_range, spec.action_dim)
    ids = spec.block_ids
    need(len(set(ids)) == len(ids), "a block twice", "each once")


def check_action_range(known: ActionRange, action_dim: int) -> None:
    """Raise `BadBundle` unless what the actions were in training has a number for every dimension."""
    sizes = (len(known.low), len(known.high), len(known.step))
    need(set(sizes) == {action_dim}, f"an action_range of {sizes} numbers", f"{action_dim} each")
    is_range = all(low <= high for low, high in zip(known.low, known.high, strict=True))
    need(
        is_range and min(known.step) > 0,
        "an empty action_range, or a step of 0",
        "low <= high, steps above 0",
    )


def check_normalizations(contents: Contents) -> None:
    """Raise `BadBundle` unless everything that is normalised has numbers of its size."""
    spec, found = contents.spec, contents.observations
    need(
        set(found) == set(spec.observation_shapes),
        f"normalisations of {shown(sorted(found))}",
        f"one for each of {shown(sorted(spec.observation_shapes))}",
    )
    wanted = {
        key: (shape[0], 1, 1) if is_image(key) else shape for key, shape in spec.observation_shapes.items()
    }
    parts = [(key, found[key], wanted[key]) for key in found]
    for key, one, shape in [*parts, ("the actions", contents.actions, (spec.action_dim,))]:
        for name, values in (("low", one.low), ("span", one.span)):
            need(values.shape == shape, f"{name} of {shown(key)} of shape {values.shape}", f"{shape}")
        need(bool((one.span > 0).all()), f"span of {shown(key)} of {one.span.min():g}", "above 0")
    for key, seen in contents.ranges.items():
        need(
            key in wanted and not is_image(key), f"a range of {shown(key)}", "one of an observation's numbers"
        )
        shape = wanted[key]
        need(
            seen.low.shape == seen.high.shape == shape,
            f"a range of {shown(key)} of another shape",
            f"{shape}",
        )
        need(bool((seen.low <= seen.high).all()), f"an empty range of {shown(key)}", "low <= high")


def check_names(contents: Contents) -> None:
    """Raise `BadBundle` unless every observation that is renamed is one, and no two become the same."""
    if contents.renamed is None:
        return
    shapes = contents.spec.observation_shapes
    names = [contents.policy_name(key) for key in shapes]
    for key, name in contents.renamed.items():
        is_one = key in shapes and name != key and name.startswith("observation.")
        is_one = is_one and is_image(name) == is_image(key) and name not in (TOKENS, MASK)
        need(is_one, f"{shown(key)} renamed to {shown(name)}", "another name of an observation")
    need(len(set(names)) == len(names), "two observations renamed to one", "one each")


def check_relative(contents: Contents) -> None:
    """Raise `BadBundle` unless what actions are offsets to has a number for each of them."""
    found, spec = contents.relative, contents.spec
    if found is None:
        return
    n, shape = len(found.dimensions), spec.observation_shapes.get(found.state, ())
    need(n == spec.action_dim, f"{n} dimensions of relative actions", f"{spec.action_dim}")
    is_state = len(shape) == 1 and shape[0] >= n
    need(is_state, f"actions relative to {shown(found.state)} of shape {shape}", f"{n} numbers or more")


def check_prompts(contents: Contents) -> None:
    """Raise `BadBundle` unless the instructions can be read."""
    settings = contents.prompt
    if settings is None:
        need(not contents.prompts, "instructions and no prompt", "both or none")
        return
    for text, ids in contents.prompts.items():
        need(0 < len(ids) <= settings.length, f"{len(ids)} tokens for {shown(text)}", f"1..{settings.length}")
    template, told = settings.template, [INSTRUCTION, *([STATE_TOLD] if settings.state else [])]
    rest = template.replace(INSTRUCTION, "").replace(STATE_TOLD, "" if settings.state else STATE_TOLD)
    is_plain = all(template.count(name) == 1 for name in told) and not set("{}") & set(rest)
    need(
        is_plain if settings.tokenizer else not template,
        f"the template {shown(template)}",
        f"{' and '.join(told)} once and no other braces where there is a tokenizer, none where not",
    )
    known = [contents.policy_name(key) for key in contents.spec.observation_shapes]
    is_known = not settings.state or (bool(settings.tokenizer) and settings.state in known)
    need(is_known, f"a prompt that tells {shown(settings.state)}", f"a tokenizer, and one of {shown(known)}")


def check_graphs(contents: Contents) -> None:
    """Raise `BadBundle` unless the graphs have names and shapes that can be."""
    files = [graph.file for graph in contents.graphs]
    need(len(set(files)) == len(files), "a graph's file twice", "each once")
    for graph in contents.graphs:
        need(graph.file.endswith(".onnx"), f"the graph {shown(graph.file)}", "a name that ends in .onnx")
        for name, shape in [*graph.inputs.items(), *graph.outputs.items()]:
            need(_numbers(shape) <= _MAX_NUMBERS, f"{shown(name)} of shape {shape}", "fewer numbers")


def check_plans(contents: Contents) -> None:
    """Raise `BadBundle` unless every plan has something to do, by graphs that are there and fit it."""
    need(bool(contents.plans), "no plan", "one or more")
    for name, program in contents.plans.items():
        where = f"plan {shown(name)}"
        is_name = bool(_PLAN.fullmatch(name))
        need(is_name, f"a plan called {shown(name)}", "a name of letters, digits, '-', '_' and '.'")
        wrong = [index for index in program.graphs if index >= len(contents.graphs)]
        need(not wrong, f"{len(contents.graphs)} graphs and a call of {wrong} in {where}", "one of them")
        has_both = bool(program.steps) and program.tokens is not None
        need(not has_both, f"{where} with {len(program.steps)} steps", "steps, or tokens to write")
        check_encode(contents, program)
        if program.is_whole:
            check_whole(contents, program, where)
        elif program.tokens is None:
            check_steps(contents, program, where)
        else:
            check_tokens(contents, program, program.tokens)


def check_golden_files(contents: Contents) -> None:
    """Raise `BadBundle` unless every plan has its own golden chunk: plans that changed places are found."""
    files = {name: golden_file(name) for name in contents.plans}
    for name, program in contents.plans.items():
        golden = program.golden
        found = "no golden chunk" if golden is None else f"the golden chunk {shown(golden.file)}"
        is_own = golden is not None and golden.file == files[name]
        need(is_own, f"{found} of plan {shown(name)}", files[name])
    left = [file for file in contents.files if file.startswith(FOLDER + "/") and file not in files.values()]
    need(not left, f"the golden chunk {shown(left[:1])} of no plan", "its plan")


def check_encode(contents: Contents, program: Program) -> None:
    """Raise `BadBundle` unless `encode` reads what a robot gives."""
    spec, prompt, graph = contents.spec, contents.prompt, contents.graphs[program.encode]
    given: dict[str, Shape] = {
        contents.policy_name(key): (1, spec.n_obs_steps, *shape)
        for key, shape in spec.observation_shapes.items()
    }
    if prompt is not None:
        given |= {TOKENS: (1, prompt.length), MASK: (1, prompt.length)}
    _check_reads(graph, given)
    _check_fixed(graph.outputs, shown(graph.file))
    if program.perceive is None:
        need(program.looks_every == 1, f"a look every {program.looks_every} chunks", "a graph that perceives")
        return
    need(bool(program.steps), "a graph that perceives", "steps")
    _check_names(graph.outputs, lambda name: name.startswith(SEEN), "encode")
    perceive = contents.graphs[program.perceive]
    _check_reads(perceive, {**given, **graph.outputs})
    _check_fixed(perceive.outputs, shown(perceive.file))


def check_whole(contents: Contents, program: Program, where: str) -> None:
    """Raise `BadBundle` unless the one graph gives a chunk."""
    spec, graph = contents.spec, contents.graphs[program.encode]
    chunk = {"actions": (1, spec.horizon, spec.action_dim)}
    need(program.finish is None, f"{where} of one graph and one that finishes", "one of both")
    need(
        graph.origin.part == "whole" and dict(graph.outputs) == chunk,
        f"{where} without steps and {shown(graph.file)} with {shown(dict(graph.outputs))}",
        f"steps, tokens to write, or one graph of the whole with {chunk}",
    )


def check_steps(contents: Contents, program: Program, where: str) -> None:
    """Raise `BadBundle` unless every step reads what is there and leaves what the next one needs.

    Whether enough is kept of each block is checked when the steps are bound (`kept`).
    """
    spec, graphs = contents.spec, contents.graphs
    latent: Shape = (1, *spec.latent_shape)
    chunk: Shape = (1, spec.horizon, spec.action_dim)
    reads = program.encode if program.perceive is None else program.perceive
    context = graphs[reads].outputs
    _check_names(context, lambda name: name.startswith(CONTEXT), "encode")
    made: dict[str, Shape] = {}
    kept = 0
    for index, step in enumerate(program.steps):
        graph, table, which = graphs[step.graph], step.table, f"step {index} of {where}"
        made |= {name.removeprefix(NEW): shape for name, shape in graph.outputs.items() if name != "out"}
        _check_names(graph.outputs, lambda name: name == "out" or name.startswith(NEW), which)
        _check_reads(graph, {"x": latent, "t": (), "at": (), **context, **_blocks(graph, made)})
        found = graph.outputs.get("out")
        need(found == latent, f"out of {which} of shape {found}", f"{latent}")
        rows = graph.origin.timesteps or (table.t,)
        is_row = step.at < len(rows) and abs(rows[step.at] - table.t) <= _SAME_TIMESTEP
        need(is_row, f"{which} looking up row {step.at} of {len(rows)}", f"the row of timestep {table.t}")
        need(len(table.memory) == kept, f"{which} with {len(table.memory)} weights of its memory", f"{kept}")
        known = {"x", "out", "clean", *(f"m{i}" for i in range(kept))}
        need(set(table.keep) <= known, f"{which} keeping {shown(table.keep)}", f"some of {sorted(known)}")
        kept = len(table.keep)
        is_mix = table.alpha >= 0 and table.sigma >= 0 and table.alpha + table.sigma > 0
        need(is_mix, f"{which} with alpha={table.alpha:g}, sigma={table.sigma:g}", "0 or more, not both 0")
        need(table.clip is None or table.clip > 0, f"{which} with clip={table.clip}", "above 0")
    check_first(contents, program, where)
    if program.finish is None:
        need(latent == chunk, f"a chunk of shape {latent} and no graph that finishes", f"one to {chunk}")
    else:
        graph = graphs[program.finish]
        _check_reads(graph, {"x": latent, **context})
        need(
            graph.outputs == {"actions": chunk}, f"finish with {shown(graph.outputs)}", f"actions of {chunk}"
        )


def check_first(contents: Contents, program: Program, where: str) -> None:
    """Raise `BadBundle` unless a chunk can begin at the step it says, and needs nothing of those before."""
    first, steps = program.first, program.steps
    if first is None:
        return
    need(first <= len(steps), f"{where} beginning at step {first}", f"one of {len(steps)}, or none")
    need(contents.relative is None, f"{where} beginning with chunks of offsets", "chunks of targets")
    if 0 < first < len(steps):
        is_known = remembered([step.table for step in steps[:first]]) is not None
        is_free = is_known or not steps[first].table.memory
        need(is_free, f"{where} beginning in the midst of a step, at {first}", "the beginning of one")
    made: dict[str, int] = {}
    for step in steps[first:]:
        graph = contents.graphs[step.graph]
        for block, row in step.weights.items():
            is_kept = f"{CACHE}{block}.0" in graph.inputs
            is_there = not is_kept or made.get(block, 0) >= len(row)
            need(is_there, f"{where} beginning at step {first} without {shown(block)}", "all it reuses")
        for name in graph.outputs:
            block = name.removeprefix(NEW)
            made[block] = made.get(block, 0) + (
                FRESH + block not in graph.inputs or block not in step.weights
            )


def _blocks(graph: Graph, made: Shapes) -> dict[str, Shape]:
    """What a step's graph may read of its blocks: whether they are computed, what was kept, its weights.

    Outputs of a block may have any first dimension, since none are written when it is not computed.
    """
    found: dict[str, Shape] = {}
    for name, shape in graph.inputs.items():
        block, _, place = name.partition(".")[2].rpartition(".")
        if name.startswith(FRESH) or name.startswith(WEIGHT) and place.isdecimal():
            found[name] = ()
        elif name.startswith(CACHE) and place.isdecimal() and block in made:
            is_same = bool(shape) and shape[0] >= 0 and shape[1:] == made[block][1:]
            found[name] = shape if is_same else made[block]
    return found


def check_tokens(contents: Contents, plan: Program, program: TokenProgram) -> None:
    """Raise `BadBundle` unless the graphs can write a chunk of the policy's size token by token."""
    spec, first, graph = (
        contents.spec,
        contents.graphs[plan.encode].outputs,
        contents.graphs[program.extend],
    )
    need(plan.finish is None, "tokens to write and a graph that finishes", "one of both")
    n = spec.horizon * spec.action_dim
    need(
        program.n == n >= program.executed, f"{program.executed} of {program.n} tokens", f"at most {n} of {n}"
    )
    past = {name: shape for name, shape in first.items() if name != "logits"}
    _check_names(past, lambda name: name.startswith(PAST), "encode")
    _check_reads(graph, {"tokens": (1, -1), "kept": (1,), **past})
    need(
        {"tokens", "kept"} <= set(graph.inputs),
        f"extend reading {shown(sorted(graph.inputs))}",
        "tokens, kept",
    )
    vocabulary = first.get("logits", ())
    is_row = len(vocabulary) == 2 and vocabulary[0] == 1 and vocabulary[1] > 0
    need(is_row, f"logits of shape {vocabulary}", "(1, vocabulary)")
    size = vocabulary[-1]
    logits = graph.outputs.get("logits")
    need(logits == (1, -1, size), f"logits of extend of shape {logits}", f"{(1, -1, size)}")
    for name, shape in graph.outputs.items():
        is_past = name.startswith(NEXT) and past.get(name.removeprefix(NEXT)) == shape
        need(is_past or name == "logits", f"extend writing {shown(name)} {shape}", "what encode wrote, anew")
    fits = program.n_bins <= program.end <= size
    need(fits, f"ids up to {program.end} and {program.n_bins} bins", f"n_bins <= end <= {size}")
    table = program.decoder.table
    is_table = len(table) == (n if program.decoder.init == "marginal" else len(table))
    need(
        is_table and all(i < size for i in table), f"a table of {len(table)} tokens", f"{n} ids below {size}"
    )


def _check_reads(graph: Graph, given: Shapes) -> None:
    """Every input is given, in its shape."""
    for name, shape in graph.inputs.items():
        need(
            given.get(name) == shape,
            f"{shown(name)} of shape {shape} read by {shown(graph.file)}",
            f"{given[name]}" if name in given else f"one of {shown(sorted(given))}",
        )


def _check_fixed(shapes: Shapes, where: str) -> None:
    """No dimension may have any length."""
    is_fixed = all(min(shape, default=0) >= 0 for shape in shapes.values())
    need(is_fixed, f"{where} with a shape that varies", "fixed ones")


def _check_names(outputs: Shapes, is_known: Callable[[str], bool], where: str) -> None:
    unknown = [name for name in outputs if not is_known(name)]
    need(not unknown, f"{where} writing {shown(unknown[:1])}", "what others read")


def _numbers(shape: Shape) -> float:
    return float(np.prod([max(n, 1) for n in shape], dtype=np.float64)) if shape else 1.0
