"""The soft committee: several classifiers of one layer vote with their softmax outputs
("Tiny language models", arXiv 2507.14871, section 4).

    python committee.py --n_members=4                    # train four, then let them vote
    python committee.py out/RUN out/RUN --deep=out/RUN   # runs of finetune.py, against a deeper one
    python committee.py out/RUN out/RUN --predict="He has never been to Japan."

In the order of this file: the vote, how members are trained, the committee as one model and its
latency, what is printed, the flags. The members' outputs on the test examples were saved by
finetune.py, so accuracies cost nothing.
"""
import argparse
import copy
import itertools
import json
import math
import shlex
import statistics
import time
from pathlib import Path

import numpy as np
import torch

import finetune
import pretrain
import training
from data.files import write_atomically
from data.flags import new_parser, number, parse_flags, refuse, refuse_other, run_script, user_path
from data.rows import match
from model import count_parameters

# ---- the vote -----------------------------------------------------------------------------------

def evaluate_committee(runs, deep=None):
    """-> the test results (dict of plain values) of a committee of these runs, of its members, and
    of the run `deep` to compare it with."""
    outputs, labels = load_outputs(runs)  # (K, N, n_classes), (N,)
    soft = outputs.mean(0)  # (N, n_classes) the committee's probabilities
    errors = [calibration_error(member, labels) for member in outputs]
    result = {
        "members": {run: accuracy(member, labels) for run, member in zip(runs, outputs)},
        "n": len(labels),
        "soft": accuracy(soft, labels),
        "hard": accuracy(majority_vote(outputs), labels),
        "by_size": accuracy_by_size(outputs, labels),
        "calibration_error": {"members": statistics.mean(errors),
                              "soft": calibration_error(soft, labels)},
        "agreement": agreement(outputs),
    }
    if deep:
        both, _ = load_outputs([runs[0], deep])
        result["deep"] = {"run": deep, "accuracy": accuracy(both[1], labels),
                          "calibration_error": calibration_error(both[1], labels)}
    return result


def accuracy(probabilities, labels):
    return float((probabilities.argmax(-1) == labels).mean())


def majority_vote(outputs):
    """outputs (K, N, n_classes) -> the share of the members that vote for each class
    (N, n_classes). The mean probability breaks ties."""
    votes = np.eye(outputs.shape[-1])[outputs.argmax(-1)].mean(0)
    return votes + 1e-6 * outputs.mean(0)


def calibration_error(probabilities, labels, n_bins=15):
    """Expected calibration error (Guo et al. 2017): the difference between confidence and accuracy,
    on average over bins of equal width weighted by their examples."""
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, right - confidence, n_bins)
    return float(np.abs(gaps).sum() / len(labels))


def agreement(outputs):
    """The share of the texts for which two members predict the same class, on average over the
    pairs."""
    predicted = outputs.argmax(-1)  # (K, N)
    pairs = list(itertools.combinations(predicted, 2))
    return statistics.mean(float((a == b).mean()) for a, b in pairs) if pairs else 1.0


def accuracy_by_size(outputs, labels, n_draws=200):
    """-> for each committee size 1 .. K the mean and the standard deviation of the soft committee's
    accuracy over all subsets of the members, or over n_draws random ones where there are more
    (list of dicts)."""
    rng, rows, K = np.random.default_rng(0), [], len(outputs)
    for k in range(1, K + 1):
        if math.comb(K, k) <= n_draws:
            subsets = list(itertools.combinations(range(K), k))
        else:
            subsets = [rng.choice(K, k, replace=False) for _ in range(n_draws)]
        values = [accuracy(outputs[list(subset)].mean(0), labels) for subset in subsets]
        rows.append({"size": k, "mean": statistics.mean(values), "sd": statistics.pstdev(values),
                     "subsets": len(values)})
    return rows


def load_outputs(runs):
    """-> probabilities (numpy, K x N x n_classes) of the test examples by each of the K runs, their
    labels (N,). SystemExit if they were tested on different test sets."""
    loaded = [load_output(run) for run in runs]
    _, labels, test_set = loaded[0]
    for run, (probabilities, _, other) in zip(runs, loaded):
        if (other, probabilities.shape) != (test_set, loaded[0][0].shape):
            raise SystemExit(f"{run} was tested on another dataset than {runs[0]}, or one prepared "
                             "differently")
    return np.stack([probabilities for probabilities, _, _ in loaded]), labels


def load_output(run):
    """-> what is in the test.npz of a run: probabilities (N, n_classes), labels (N,), the checksum
    of the test set. SystemExit if it is missing or damaged."""
    path = Path(run) / "test.npz"
    try:
        with np.load(path) as file:
            probabilities, labels = file["probabilities"], file["labels"]
            test_set = str(file["test_set"])
    except (FileNotFoundError, NotADirectoryError):
        raise SystemExit(f"{run} has no test.npz; it must be a run of finetune.py, without "
                         "--holdout") from None
    except Exception as error:  # a damaged file fails in zipfile, zlib or numpy
        raise SystemExit(f"{path} is damaged ({type(error).__name__}); fine-tune again with "
                         "another --out_dir") from None
    return probabilities.astype(np.float64), labels, test_set


# ---- training members ---------------------------------------------------------------------------

# What makes a member.
RECIPE = {"corpus", "dataset", "subset", "pretrain", "finetune"} | training.SHAPE


def train_members(args, typed):
    """Pre-train and fine-tune the members that are missing. What was interrupted goes on. -> their
    run directories. typed (dict): the flags that were typed."""
    pretrain_flags = split_flags("pretrain", args.pretrain, pretrain)
    finetune_flags = split_flags("finetune", args.finetune, finetune)
    finetune.open_dataset(args.dataset).label_names  # SystemExit now, not after a pre-training
    check_recipe(args)
    shape = [f"--n_layer={args.n_layer}"]
    for name in sorted(typed.keys() & training.SHAPE):
        value = typed[name]
        shape += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    members = []
    for seed in range(args.n_members):
        run, member = Path(args.out_dir, f"pretrained-{seed}"), Path(args.out_dir, f"member-{seed}")
        members.append(str(member))
        if (member / "ckpt.pt").exists():
            continue
        print(f"member {seed + 1} of {args.n_members}; each takes as long as the first")
        common = [f"--seed={seed}", f"--device={args.device}"]
        resume = ["--resume"] if (run / "ckpt.pt").exists() else []
        pretrain.main([f"--dataset={args.corpus}", f"--subset={args.subset}", f"--out_dir={run}",
                       *common, *shape, *resume, *pretrain_flags])
        # All members see the same examples: else a committee would see more of them than one model.
        finetune.main([f"--dataset={args.dataset}", f"--init_from={run}", f"--out_dir={member}",
                       *common, "--example_seed=0", *finetune_flags])
    return members


def split_flags(name, text, script):
    """The flags (list of str) in --pretrain or --finetune. SystemExit for those that committee.py
    sets."""
    try:
        flags = shlex.split(text)
    except ValueError as error:
        raise SystemExit(f"--{name}={text}: {error}") from None
    _, typed = parse_flags(script.get_parser(), flags)
    refuse(typed, training.SHAPE | {"seed", "device", "out_dir", "dataset", "subset", "init_from",
                                    "like", "resume", "fill", "predict", "test", "holdout"},
           f"not in --{name}: it is set by committee.py itself")
    return flags


def check_recipe(args):
    """Keep the flags that make the members beside them. SystemExit if members that are there were
    made by other flags: the committee would mix unlike members."""
    path = Path(args.out_dir) / "recipe.json"
    recipe = {name: getattr(args, name) for name in sorted(RECIPE)}
    if any(Path(args.out_dir).glob("[pm]*-[0-9]*/ckpt.pt")):
        try:
            known = dict(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            known = dict.fromkeys(recipe, "unknown")
        refuse_other(recipe, known, f"the committee in {args.out_dir}",
                     "give that value, or another --out_dir")
    write_atomically(path, json.dumps(recipe, indent=1).encode())


# ---- the committee as one model -----------------------------------------------------------------

def load_members(runs, device):
    """-> the members (list of BertForClassification), their tokenizer, the names of the labels.
    SystemExit if they don't fit together."""
    loaded = [finetune.load_classifier(run, device) for run in runs]
    _, tokenizer, names = loaded[0]
    for run, (_, other_tokenizer, other_names) in zip(runs, loaded):
        if other_names != names:
            raise SystemExit(f"{run} has different labels from {runs[0]}")
        if other_tokenizer.fingerprint != tokenizer.fingerprint:
            raise SystemExit(f"{run} has another vocabulary than {runs[0]}")
    return [model for model, _, _ in loaded], tokenizer, names


def stack(models):
    """Models of one architecture -> a function of tokens (B, T) -> logits (K, B, n_classes) that
    computes all of them at once, as one model whose weights have one dimension more."""
    weights, buffers = torch.func.stack_module_state(models)
    weights = {name: torch.nn.Parameter(w.detach(), requires_grad=False)
               for name, w in weights.items()}  # CUDA graphs copy other tensors at each call
    skeleton = copy.deepcopy(models[0]).to("meta")  # its own weights are never used

    def call_one(weights, buffers, tokens):
        return torch.func.functional_call(skeleton, (weights, buffers), tokens)
    call_all = torch.vmap(call_one, in_dims=(0, 0, None))

    return lambda tokens: call_all(weights, buffers, tokens)


def classify(texts, models, tokenizer, device):
    """-> the class probabilities of texts (list of str) by each member (K x N x n_classes)."""
    return np.stack([
        finetune.classify(model, finetune.encode_texts(texts, model, tokenizer, device), tokenizer)
        for model in models])


def predict(runs, texts, device):
    """Print the likeliest labels of each text by the committee, and by each member. texts: iterable
    of list of str."""
    models, tokenizer, names = load_members(runs, device)
    for batch in texts:
        votes = classify(batch, models, tokenizer, device)
        for i in range(len(batch)):
            for name, row in [("committee", votes[:, i].mean(0)), *zip(runs, votes[:, i])]:
                print(f"{name}: {finetune.format_labels(row, names, n=3)}")


@torch.no_grad()
def seconds_of(function, tokens, budget=3.0):
    """The median time of function(tokens): after a warm-up as many runs as fit into `budget`
    seconds, 5 to 200."""
    times = []
    while len(times) < 8 or (len(times) < 203 and sum(times[3:]) < budget):
        training.wait_for(tokens.device)
        start = time.perf_counter()
        function(tokens)
        training.wait_for(tokens.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def measure_latency(models, deep, device):
    """-> rows of what classifying a batch takes (list of dicts): parameters, FLOPs a text, seconds
    a batch of 1 and of 64 texts of 128 tokens (or the least block_size). On CUDA everything is
    compiled, with CUDA graphs."""
    K, first = len(models), models[0]
    configs = [model.bert.config for model in ([*models, deep] if deep else models)]
    T = min(128, *(config.block_size for config in configs))
    n_tokens = min(1000, *(config.vocab_size for config in configs))
    contestants = {"one member": ([first], first)}
    if deep:
        contestants = {"deep model": ([deep], deep)} | contestants
    contestants[f"{K} members, one after the other"] = (
        models, lambda tokens: torch.stack([model(tokens) for model in models]))
    if all((model.bert.config, model.pooling, model.markers) ==
           (first.bert.config, first.pooling, first.markers) for model in models):
        contestants[f"{K} members, stacked"] = (models, stack(models))
    rows = []
    for name, (parts, function) in contestants.items():
        if device.type == "cuda":
            function = torch.compile(function, mode="reduce-overhead", dynamic=False)
        flops = [T * model.flops(T) for model in parts]
        row = {"name": name, "parameters": sum(map(count_parameters, parts)), "flops": sum(flops)}
        for batch_size in (1, 64):
            generator = torch.Generator().manual_seed(0)
            tokens = torch.randint(n_tokens, (batch_size, T), generator=generator).to(device)
            row[f"seconds_{batch_size}"] = seconds_of(function, tokens)
        rows.append(row)
    return rows


# ---- what is printed ----------------------------------------------------------------------------

def report(result):
    """Print a result of evaluate_committee(), with "latency" if it was measured."""
    members, error = list(result["members"].values()), result["calibration_error"]
    for run, value in result["members"].items():
        print(f"{value:7.1%}  {run}")
    print(f"{len(members)} members on {result['n']:,} test examples: mean "
          f"{statistics.mean(members):.1%}, best {max(members):.1%}; two of them agree on "
          f"{result['agreement']:.1%}")
    for row in result["by_size"]:
        print(f"  committee of {row['size']:2}: {row['mean']:6.1%} +- {row['sd']:.1%} over "
              f"{row['subsets']} subsets")
    print(f"calibration error: members {error['members']:.3f}, soft committee {error['soft']:.3f}")
    if "deep" in result:
        deep = result["deep"]
        print(f"deep model {deep['run']}: {deep['accuracy']:.1%}, calibration error "
              f"{deep['calibration_error']:.3f}")
    if "latency" in result:
        print(f"{'time on ' + result['device']:36}  parameters  MFLOPs/text    batch 1   batch 64")
        for row in result["latency"]:
            print(f"{row['name']:36} {row['parameters']:11,} {row['flops'] / 1e6:12,.0f} "
                  f"{row['seconds_1'] * 1e3:7.1f} ms {row['seconds_64'] * 1e3:7.1f} ms")
    print(f"soft committee {result['soft']:.1%}, majority vote {result['hard']:.1%}")


# ---- flags --------------------------------------------------------------------------------------

def get_parser():
    parser = new_parser("committee.py", __doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="*", type=user_path, metavar="RUN",
                        help="run directories of finetune.py, or patterns such as \"out/a-*\"")
    flag = parser.add_argument
    flag("--deep", type=user_path, metavar="RUN",
         help="a run of finetune.py to compare the committee with")
    flag("--predict", metavar="TEXT", help="print the likeliest labels of TEXT by the committee, "
         "and by each member; - reads a text from each line of standard input")
    flag("--latency", action=argparse.BooleanOptionalAction, default=True,
         help="measure time per batch")
    flag("--device", default="auto", help="cuda, mps, cpu or auto")
    flag("--out_dir", type=user_path,
         help="where committee.json and trained members go; by default "
         "out/committee-DATASET-bertN_LAYER, without --n_members out/committee")
    flag = parser.add_argument_group("training members").add_argument
    flag("--n_members", type=number(int, 0, 1000), default=0,
         help="train so many members, with seeds 0, 1, ..., unless they are there")
    flag("--corpus", type=user_path, default="pocket", help="the dataset to pre-train on")
    flag("--dataset", type=user_path, default="pocket-places",
         help="the labelled dataset to fine-tune on")
    flag("--subset", type=number(float, above=0, most=1), default=1.0,
         help="share of the documents that each member is pre-trained on, drawn for each anew")
    flag("--pretrain", metavar="FLAGS", default="", help="further flags of pretrain.py")
    flag("--finetune", metavar="FLAGS", default="", help="further flags of finetune.py")
    training.add_model_flags(parser, "model of the members to train")
    parser.set_defaults(n_layer=1)
    return parser


def find_runs(patterns):
    """Names of runs and globs -> the runs, each once: one that is named twice has one vote."""
    runs = {}
    for pattern in patterns:
        for run in sorted(match(pattern)) or [pattern]:
            runs.setdefault(Path(run).resolve(), run)
    return list(runs.values())


def main(argv=None):
    args, typed = parse_flags(get_parser(), argv)
    if not args.n_members:
        refuse(typed, RECIPE, "goes with --n_members")
    trained = f"out/committee-{Path(args.dataset).name}-bert{args.n_layer}"
    args.out_dir = args.out_dir or (trained if args.n_members else "out/committee")
    runs = find_runs(args.runs)
    if len(runs) + args.n_members < 2:
        raise SystemExit("a committee needs two members: name their runs, or train some with "
                         "--n_members=4")
    device = training.pick_device(args.device)
    if args.n_members:
        runs = find_runs([*runs, *train_members(args, typed)])
    if args.predict is not None:
        return predict(runs, finetune.read_texts(args.predict), device)
    result = evaluate_committee(runs, args.deep)
    if args.latency:
        print("measuring times; --no-latency leaves that out")
        models, _, _ = load_members(runs, device)
        deep = finetune.load_classifier(args.deep, device)[0] if args.deep else None
        try:
            result |= {"device": str(device), "latency": measure_latency(models, deep, device)}
        except Exception as error:  # no compiler, an unsupported GPU, too little memory
            print(f"times are not measured ({type(error).__name__})")
    write_atomically(f"{args.out_dir}/committee.json", json.dumps(result, indent=1).encode())
    report(result)
    print(f"wrote {args.out_dir}/committee.json")
    return result


if __name__ == "__main__":
    run_script(main)
