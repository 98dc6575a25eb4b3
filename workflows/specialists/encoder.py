"""A sentence encoder (BERT, mean over tokens): how it embeds, how well it tells labels apart, how it learns.

No head is kept: a text has the label whose examples' mean embedding is nearest. So a merged checkpoint, which is
weights of the encoder and nothing else, is measured in the same way as its parents.

One thread does all of it: its sums do not depend on the number of cores, and two models are worked on side by side.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, BertModel, PreTrainedTokenizerBase

from specialists.tasks import Example, Task

MOST_TOKENS = 32
BATCH_TO_EMBED = 64
# More would make a centre hardly more exact, and take longer.
EXAMPLES_IN_A_CENTRE = 80
# Batches are cut from runs of this many batches sorted by length: less padding, still shuffled.
BATCHES_SORTED = 8


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a specialist is trained."""

    steps: int
    batch: int
    learning_rate: float
    warm_up: int = 20
    scale: float = 20.0  # of the cosines that go into the softmax
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Encoder:
    """A checkpoint, ready to embed texts."""

    model: BertModel
    tokenizer: PreTrainedTokenizerBase

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = self.tokenizer(list(texts), truncation=True, max_length=MOST_TOKENS)["input_ids"]
        return found

    def embed(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """The mean of the last layer over each text's tokens, scaled to length one: (texts, width)."""
        longest = max(len(row) for row in tokens)
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in tokens])  # (n, longest)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens])
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # (n, longest, width)
        weights = mask.unsqueeze(-1).to(states.dtype)
        return functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)

    @torch.no_grad()
    def embed_all(self, texts: Sequence[str]) -> Tensor:
        """As `embed`, in batches of texts of like length; in the order given."""
        self.model.eval()
        tokens = self.tokens(texts)
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        found = torch.empty(len(tokens), self.model.config.hidden_size)
        for start in range(0, len(order), BATCH_TO_EMBED):
            batch = order[start : start + BATCH_TO_EMBED]
            found[batch] = self.embed([tokens[index] for index in batch])
        return found


def open_encoder(folder: Path) -> Encoder:
    torch.set_num_threads(1)
    return Encoder(BertModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


def centres(encoder: Encoder, task: Task) -> Tensor:
    """The mean embedding of some of each label's training examples: (labels, width)."""
    examples = [example for label in range(len(task.labels)) for example in spread_out(task.train, label)]
    embedded = encoder.embed_all([example.text for example in examples])
    labels = torch.tensor([example.label for example in examples])
    means = [embedded[labels == label].mean(0) for label in range(len(task.labels))]
    return functional.normalize(torch.stack(means), dim=-1)


def spread_out(examples: Sequence[Example], label: int) -> list[Example]:
    """At most EXAMPLES_IN_A_CENTRE of one label's examples, taken at even distances."""
    of_label = [example for example in examples if example.label == label]
    count = min(EXAMPLES_IN_A_CENTRE, len(of_label))
    return [of_label[index * len(of_label) // count] for index in range(count)]


def accuracy(encoder: Encoder, task: Task) -> float:
    """The part of the held-out examples whose nearest centre is that of their label."""
    embedded = encoder.embed_all([example.text for example in task.held_out])
    nearest = (embedded @ centres(encoder, task).T).argmax(1)
    return float((nearest == torch.tensor([example.label for example in task.held_out])).float().mean())


def train(encoder: Encoder, task: Task, schedule: Schedule) -> None:
    """Move the encoder's weights so that examples of one label lie together: softmax over cosines to the centres.

    The centres start at the means and learn too; they are thrown away. The table of word embeddings stays as it is:
    a few thousand texts touch few of its rows.
    """
    torch.manual_seed(schedule.seed)
    start = centres(encoder, task)
    learned = torch.nn.Parameter(start.clone())
    model = encoder.model.train()
    model.embeddings.requires_grad_(False)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [{"params": weights, "lr": schedule.learning_rate}, {"params": [learned], "lr": 1e-3}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    slope = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / schedule.warm_up) * max(0.0, 1 - step / schedule.steps)
    )
    batches = shuffled_batches(encoder, task.train, schedule)
    for _ in range(schedule.steps):
        tokens, labels = next(batches)
        cosines = encoder.embed(tokens) @ functional.normalize(learned, dim=-1).T  # (batch, labels)
        loss = functional.cross_entropy(schedule.scale * cosines, labels)
        # Gradients are zeroed, not freed: fresh memory is what costs time.
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
        slope.step()
    model.eval()


def shuffled_batches(
    encoder: Encoder, examples: Sequence[Example], schedule: Schedule
) -> Iterator[tuple[list[list[int]], Tensor]]:
    """Batches of tokens and labels, for ever; every example once before any comes again (but for the rest)."""
    chance = random.Random(schedule.seed)
    tokens = encoder.tokens([example.text for example in examples])
    order = list(range(len(examples)))
    run = schedule.batch * BATCHES_SORTED
    while True:
        chance.shuffle(order)
        for start in range(0, len(order) - schedule.batch + 1, run):
            like = sorted(order[start : start + run], key=lambda index: len(tokens[index]))
            starts = list(range(0, len(like) - schedule.batch + 1, schedule.batch))
            chance.shuffle(starts)
            for first in starts:
                batch = like[first : first + schedule.batch]
                yield [tokens[index] for index in batch], torch.tensor([examples[index].label for index in batch])
