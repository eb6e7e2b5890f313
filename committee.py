"""The soft committee: several classifiers of one layer vote with their softmax outputs (arXiv 2507.14871, section 4).

    python committee.py --n_members=4                           # pre-train and fine-tune four, then let them vote
    python committee.py out/RUN out/RUN out/RUN --deep=out/RUN  # runs of finetune.py, against a deeper one
    python committee.py out/RUN out/RUN --predict="He has never been to Japan."

The members' test outputs were saved by finetune.py, so accuracies cost nothing; latencies are measured.
"""
import argparse
import copy
import glob
import itertools
import json
import math
import shlex
import statistics
import time
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

import finetune
import pretrain
from data.flags import AT_LEAST_0, check_limits, new_parser, run_script
from data.tokenfile import write_atomically
from model import BertConfig, count_parameters, flops_per_token

LIMITS = pretrain.LIMITS | {"n_members": AT_LEAST_0}


def get_parser():
    parser = new_parser("committee.py", __doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run directories of finetune.py, or globs")
    flag = parser.add_argument
    flag("--deep", metavar="RUN", help="a run of finetune.py to compare the committee with")
    flag("--predict", metavar="TEXT", help="print what the committee makes of TEXT, and each member's vote")
    flag("--latency", action=argparse.BooleanOptionalAction, default=True, help="measure it")
    flag("--device", default="auto", help="cuda, mps, cpu or auto")
    flag("--out_dir", help="where committee.json, committee.png and trained members go; by default "
         "out/committee-DATASET-bertN_LAYER")
    flag = parser.add_argument_group("training members").add_argument
    flag("--n_members", type=int, default=0, help="train so many, with seeds 0, 1, ..., or what is missing of them")
    flag("--corpus", default="pocket", help="the dataset to pre-train on")
    flag("--dataset", default="pocket-places", help="the labelled dataset to fine-tune on")
    flag("--subset", type=float, default=1.0, help="share of the documents that each member is pre-trained on, its own "
         "draw for each")
    flag("--pretrain", metavar="FLAGS", default="--epochs=2", help="further flags of pretrain.py")
    flag("--finetune", metavar="FLAGS", default="", help="further flags of finetune.py")
    pretrain.add_model_flags(parser, "model of the members to train")
    parser.set_defaults(n_layer=1)
    return parser


def train_members(args):
    """Pre-train and fine-tune the members that are missing. What was interrupted goes on. -> their run directories"""
    members, model = [], []
    for field in fields(BertConfig):
        value = getattr(args, field.name, None)
        if value is not None:
            values = value if isinstance(value, list) else [value]
            model += [f"--{field.name}", *map(str, values)]
    for seed in range(args.n_members):
        run, member = (Path(args.out_dir) / f"{kind}-{seed}" for kind in ("pretrained", "member"))
        members.append(str(member))
        if (member / "ckpt.pt").exists():
            continue
        print(f"member {seed + 1} of {args.n_members}")
        common = [f"--seed={seed}", f"--device={args.device}"]
        resume = ["--resume"] if (run / "ckpt.pt").exists() else []
        pretrain.main([f"--dataset={args.corpus}", f"--subset={args.subset}", f"--out_dir={run}", *common, *model,
                       *resume, *shlex.split(args.pretrain)])
        finetune.main([f"--dataset={args.dataset}", f"--init_from={run}", f"--out_dir={member}", *common,
                       *shlex.split(args.finetune)])
    return members


def load_outputs(runs):
    """-> probabilities (numpy, K x N x n_classes) of the test examples by each of the K runs, their labels (N,).
    SystemExit names the run whose outputs are missing or damaged, or belong to another test set than the first's."""
    outputs, first = [], None
    for run in runs:
        try:
            with np.load(Path(run) / "test.npz") as file:
                probabilities, labels, test_set = file["probabilities"], file["labels"], str(file["test_set"])
        except FileNotFoundError:
            raise SystemExit(f"{run} has no test.npz; it must be a run of finetune.py, without --holdout") from None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise SystemExit(f"{run}/test.npz is damaged ({type(error).__name__}); fine-tune again") from None
        first = first or (test_set, probabilities.shape, labels)
        if (test_set, probabilities.shape) != first[:2]:
            raise SystemExit(f"{run} was tested on another dataset than {runs[0]}, or one prepared differently")
        if not np.isfinite(probabilities).all():
            raise SystemExit(f"{run}/test.npz holds outputs that are not finite; fine-tune again with a lower --lr")
        outputs.append(probabilities.astype(np.float64))
    return np.stack(outputs), first[2]


def accuracy(probabilities, labels):
    return float((probabilities.argmax(-1) == labels).mean())


def majority(outputs):
    """outputs (K, N, n_classes) -> the share of the members that vote for each class (N, n_classes). Where as many
    vote for one as for another, the soft committee decides."""
    votes = np.eye(outputs.shape[-1])[outputs.argmax(-1)].mean(0)
    return votes + 1e-6 * outputs.mean(0)


def mean_of_logits(outputs):
    """The members' averaged logits, turned into probabilities. The logarithm of a softmax output is the logit up to a
    constant a text, which changes nothing here."""
    logits = np.log(outputs.clip(1e-30)).mean(0)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def calibration_error(probabilities, labels, n_bins=15):
    """Expected calibration error (Guo et al. 2017): how far confidence and accuracy lie apart, on average over bins of
    equal width weighted by their examples."""
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, right - confidence, n_bins)
    return float(np.abs(gaps).sum() / len(labels))


def by_size(outputs, labels, n_draws=200):
    """-> for each committee size 1 .. K the mean and the standard deviation of the soft committee's accuracy over all
    subsets of the members, or over n_draws random ones where there are more (list of dicts)."""
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


def evaluate(runs, deep=None):
    """-> the committee's and its members' test results (dict of plain values)."""
    outputs, labels = load_outputs(runs)
    K, soft, predicted = len(runs), outputs.mean(0), outputs.argmax(-1)
    pairs = list(itertools.combinations(range(K), 2))
    result = {
        "members": {run: accuracy(each, labels) for run, each in zip(runs, outputs)}, "n": len(labels),
        "soft": accuracy(soft, labels), "hard": accuracy(majority(outputs), labels),
        "logits": accuracy(mean_of_logits(outputs), labels), "by_size": by_size(outputs, labels),
        "calibration_error": {"members": statistics.mean(calibration_error(each, labels) for each in outputs),
                              "soft": calibration_error(soft, labels)},
        "agreement": statistics.mean(float((predicted[a] == predicted[b]).mean()) for a, b in pairs) if pairs else 1.0}
    if deep:
        both, _ = load_outputs([runs[0], deep])
        result["deep"] = {"run": deep, "accuracy": accuracy(both[1], labels),
                          "calibration_error": calibration_error(both[1], labels)}
    return result


def load_members(runs, device):
    """-> the members (list of BertForClassification), their tokenizer, the names of the labels."""
    loaded = [finetune.load_classifier(run, device) for run in runs]
    _, tokenizer, first = loaded[0]
    for run, (_, other, rest) in zip(runs, loaded):
        if rest["labels"] != first["labels"]:
            raise SystemExit(f"{run} tells other labels apart than {runs[0]}")
        if other.fingerprint != tokenizer.fingerprint:
            raise SystemExit(f"{run} has another vocabulary than {runs[0]}")
    return [model for model, _, _ in loaded], tokenizer, first["labels"]


def stack(models):
    """Models of one shape -> a function (tokens, mask) -> logits (K, B, n_classes) that computes all of them at once,
    as one model whose weights have one dimension more."""
    weights, buffers = torch.func.stack_module_state(models)
    weights = {name: w.detach() for name, w in weights.items()}
    skeleton = copy.deepcopy(models[0]).to("meta")  # its own weights are never used

    def one(weights, buffers, tokens, mask):
        return torch.func.functional_call(skeleton, (weights, buffers), (tokens, mask))
    together = torch.vmap(one, in_dims=(0, 0, None, None))

    def function(tokens, mask=None):
        return together(weights, buffers, tokens, mask)
    return function


def one_after_the_other(models):
    """Models -> a function (tokens, mask) -> logits (K, B, n_classes)."""
    return lambda tokens, mask=None: torch.stack([model(tokens, mask) for model in models])


@torch.no_grad()
def seconds_of(function, tokens, budget=3.0):
    """The median time of function(tokens): after a warm-up as many runs as fit into `budget` seconds, 5 to 200."""
    times = []
    while len(times) < 8 or (len(times) < 203 and sum(times) < budget):
        if tokens.is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        function(tokens)
        if tokens.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def measure_latency(models, deep, device):
    """-> rows of what classifying a batch takes (list of dicts): parameters, FLOPs a text, seconds a batch of 1 and of
    64 texts of 128 tokens (or the models' block_size). On CUDA everything is compiled, with CUDA graphs."""
    contestants = {"one member": (models[:1], models[0])}
    if deep:
        contestants = {"deep model": ([deep], deep)} | contestants
    contestants[f"{len(models)} members, one after the other"] = (models, one_after_the_other(models))
    if all(model.bert.config == models[0].bert.config and model.pooling == models[0].pooling for model in models):
        contestants[f"{len(models)} members, stacked"] = (models, stack(models))
    rows = []
    for name, (parts, function) in contestants.items():
        if device.type == "cuda":
            function = torch.compile(function, mode="reduce-overhead")
        T = min(128, min(model.bert.config.block_size for model in parts))
        flops = sum(T * flops_per_token(model.bert.config, T, 1 / T if model.pooling == "cls" else 1.0, n_words=0)
                    for model in parts)
        row = {"name": name, "parameters": sum(map(count_parameters, parts)), "flops": flops}
        for batch_size in (1, 64):
            generator = torch.Generator().manual_seed(0)
            tokens = torch.randint(1000, (batch_size, T), generator=generator).to(device)
            row[f"seconds_{batch_size}"] = seconds_of(function, tokens)
        rows.append(row)
    return rows


def plot(result, path):
    """Accuracy against committee size, with the deep model as a line."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    sizes = result["by_size"]
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    axes.errorbar([row["size"] for row in sizes], [100 * row["mean"] for row in sizes],
                  [100 * row["sd"] for row in sizes], marker="o", capsize=3, label="soft committee")
    if "deep" in result:
        axes.axhline(100 * result["deep"]["accuracy"], color="black", linestyle="--", label="deep model")
    axes.set(xlabel="members", ylabel="test accuracy (%)", xticks=[row["size"] for row in sizes])
    axes.legend()
    figure.savefig(path, dpi=200)


def predict(runs, text, device):
    """Print the committee's likeliest labels of a text, and each member's."""
    models, tokenizer, names = load_members(runs, device)
    votes = []
    for model in models:
        corpus = finetune.encode([text], tokenizer, model.bert.config.block_size, device)
        votes.append(finetune.classify(model, corpus, tokenizer)[0])
    for name, row in [("committee", np.mean(votes, axis=0)), *zip(runs, votes)]:
        print(f"{name}: " + "   ".join(f"{names[i]} {row[i]:.1%}" for i in np.argsort(-row)[:3]))


def report(result):
    """Print a result of evaluate(), with "latency" if it was measured."""
    members, n = list(result["members"].values()), result["n"]
    for run, value in result["members"].items():
        print(f"{value:7.1%}  {run}")
    print(f"{len(members)} members on {n:,} test examples: mean {statistics.mean(members):.1%}, best "
          f"{max(members):.1%}; two of them agree on {result['agreement']:.1%}")
    for row in result["by_size"]:
        print(f"  committee of {row['size']:2}: {row['mean']:6.1%} +- {row['sd']:.1%} over {row['subsets']} subsets")
    error = result["calibration_error"]
    print(f"calibration error: members {error['members']:.3f}, soft committee {error['soft']:.3f}")
    if "deep" in result:
        print(f"deep model {result['deep']['run']}: {result['deep']['accuracy']:.1%}, calibration error "
              f"{result['deep']['calibration_error']:.3f}")
    if "latency" in result:
        print(f"{'time on ' + result['device']:36}  parameters  MFLOPs/text    batch 1   batch 64")
        for row in result["latency"]:
            print(f"{row['name']:36} {row['parameters']:11,} {row['flops'] / 1e6:12,.0f} "
                  f"{row['seconds_1'] * 1e3:7.1f} ms {row['seconds_64'] * 1e3:7.1f} ms")
    print(f"soft committee {result['soft']:.1%}, majority vote {result['hard']:.1%}, averaged logits "
          f"{result['logits']:.1%}")


def main(argv=None):
    args = get_parser().parse_args(argv)
    args.out_dir = args.out_dir or f"out/committee-{Path(args.dataset).name}-bert{args.n_layer}"
    check_limits(args, LIMITS)
    device = pretrain.pick_device(args.device)
    runs = [found for run in args.runs for found in (sorted(glob.glob(run)) or [run])]
    runs += train_members(args)
    if len(runs) < 2:
        raise SystemExit("a committee needs two members: name their runs, or train some with --n_members=4")
    if args.predict is not None:
        return predict(runs, args.predict, device)
    result = evaluate(runs, args.deep)
    if args.latency:
        models, _, _ = load_members(runs, device)
        deep = finetune.load_classifier(args.deep, device)[0] if args.deep else None
        result |= {"device": str(device), "latency": measure_latency(models, deep, device)}
    out_dir = Path(args.out_dir)
    write_atomically(out_dir / "committee.json", json.dumps(result, indent=1).encode())
    wrote = "committee.json"
    try:
        plot(result, out_dir / "committee.png")
        wrote += " and committee.png"
    except ImportError:
        print("no plot: pip install matplotlib")
    report(result)
    print(f"wrote {out_dir}/{wrote}")
    return result


if __name__ == "__main__":
    run_script(main)
