"""Recurrent classifiers: embedding → stacked (bi)directional RNN, GRU or LSTM → pooling → dropout → linear.

The weights are an `nn.RNN`'s, `nn.GRU`'s or `nn.LSTM`'s, under its own names, so state dicts are the ones people know.
The forward pass is ours: each direction of each layer runs as one dense left-to-right pass, the backward one over rows
reversed within their own length, and the state is read at each row's last token. That equals a packed sequence exactly,
whatever else is in the batch, and needs no packing: oneDNN and cuDNN's persistent kernels want dense input, and any
batch shape will do.

Shapes: B batch, T time (tokens, padded), E embedding or layer input, H hidden, of all directions where both are joined.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sentiment.models.head import Head, WordEmbedding, drop_words
from sentiment.models.subwords import SubwordEmbedding
from sentiment.shapes import Cell, Pooling

_MODULES: dict[Cell, type[nn.RNN | nn.GRU | nn.LSTM]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RecurrentClassifier(nn.Module):
    """Recurrent classifier that answers with the logit of the positive class.

    The defaults are those of the notebook "Upgraded Sentiment Analysis" (bentrevett/pytorch-sentiment-analysis):
    25,002 × 100 embeddings, hidden 256, two LSTM layers, both directions, dropout 0.5; 4,810,857 parameters.

    Args:
        vocabulary_size: Rows of the embedding, special tokens included.
        embedding_dim: Width of a token's vector.
        hidden_dim: Width of one direction's state.
        num_layers: Stacked layers.
        bidirectional: Read the text from both ends.
        dropout: Share of values zeroed on the embeddings, between layers and before the linear layer, in training.
        cell: "rnn" (Elman, tanh), "gru" or "lstm".
        pooling: What the head sees of the last layer: "last", the state after each row's last token, of both
            directions; "max", each unit's maximum over the row's tokens; "concat", last, maximum and mean side by side
            (Howard & Ruder 2018, section 3.3).
        state_layers: With "last": layers from the top whose last states the head sees side by side.
        padded_length: With "last": tokens that every row is filled up to with padding, which is then read like words,
            as the first notebook does. 0: padding is never read.
        embedding_std: Spread of fresh word vectors. PyTorch's default of 1 drowns what an LSTM learns in its first
            epochs; 0.1 is about the size of its own weights.
        frozen_embedding: Keep the word vectors as they are.
        word_dropout: Share of tokens replaced by `unk_id` in training (Iyyer et al. 2015), so that the vector of
            unknown words is trained and no single word is relied on.
        num_logits: 1, or 2 for a head with one output for each class.
        pad_id: Token that fills short rows; its vector is zero and stays so.
        unk_id: Token that stands for unknown words.
    """

    def __init__(
        self,
        vocabulary_size: int = 25_002,
        embedding_dim: int = 100,
        hidden_dim: int = 256,
        num_layers: int = 2,
        bidirectional: bool = True,
        dropout: float = 0.5,
        *,
        cell: Cell = "lstm",
        pooling: Pooling = "last",
        state_layers: int = 1,
        padded_length: int = 0,
        embedding_std: float = 1.0,
        frozen_embedding: bool = False,
        word_dropout: float = 0.0,
        num_logits: int = 1,
        pad_id: int = 1,
        unk_id: int = 0,
    ) -> None:
        super().__init__()
        self.cell: Cell = cell
        self.pooling = pooling
        self.state_layers = state_layers
        self.padded_length = padded_length
        self.word_dropout = word_dropout
        self.pad_id = pad_id
        self.unk_id = unk_id
        self.embedding: WordEmbedding | SubwordEmbedding = WordEmbedding(
            vocabulary_size, embedding_dim, pad_id, embedding_std, frozen_embedding
        )
        # Holds the weights; its own forward is not called. Dropout between layers is applied below.
        self.rnn = _MODULES[cell](embedding_dim, hidden_dim, num_layers, bidirectional=bidirectional)
        width = hidden_dim * (2 if bidirectional else 1) * (3 if pooling == "concat" else state_layers)
        self.fc = Head(width, num_logits)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Compute the logit of the positive class.

        Args:
            ids_BT: Token ids, padded on the right, int32 or int64.
            lengths_B: Real tokens of each row, at least 1.

        Returns:
            logits_B, float32 (bfloat16 under autocast).
        """
        if self.training:
            ids_BT = drop_words(ids_BT, self.word_dropout, unk_id=self.unk_id, pad_id=self.pad_id)
        if self.padded_length:
            ids_BT = pad(ids_BT, (0, self.padded_length - ids_BT.shape[1]), value=self.pad_id)
            lengths_B = torch.full_like(lengths_B, self.padded_length)
        # Time first: a step's rows lie side by side, which is the layout that the recurrent kernels read.
        ids_TB = ids_BT.t().contiguous()
        pooled_BH = self._pooled(self.dropout(self.embedding(ids_TB)), lengths_B)
        logits_B: Tensor = self.fc(self.dropout(pooled_BH))
        return logits_B

    def _pooled(self, x_TBE: Tensor, lengths_B: Tensor) -> Tensor:
        """Run all layers; return what the head sees, directions side by side."""
        reversal_TB1 = _reversal(x_TBE.shape[0], lengths_B)
        states_BH: list[Tensor] = []
        for layer in range(self.rnn.num_layers):
            outputs_TBH = [self._run(layer, "", x_TBE)]
            if self.rnn.bidirectional:
                outputs_TBH.append(self._run(layer, "_reverse", _reorder(x_TBE, reversal_TB1)))
            if layer >= self.rnn.num_layers - self.state_layers:
                states_BH += [_last(out_TBH, lengths_B) for out_TBH in outputs_TBH]
            if layer + 1 < self.rnn.num_layers:
                if self.rnn.bidirectional:
                    outputs_TBH[1] = _reorder(outputs_TBH[1], reversal_TB1)
                x_TBE = self.dropout(torch.cat(outputs_TBH, dim=2))
        # Maximum and mean don't mind that the backward direction's steps still lie in its own order.
        if self.pooling == "concat":
            means_BH = [_mean(out_TBH, lengths_B) for out_TBH in outputs_TBH]
            return torch.cat([*states_BH, *(_maximum(out_TBH, lengths_B) for out_TBH in outputs_TBH), *means_BH], dim=1)
        if self.pooling == "max":
            return torch.cat([_maximum(out_TBH, lengths_B) for out_TBH in outputs_TBH], dim=1)
        return torch.cat(states_BH, dim=1)

    def _run(self, layer: int, direction: str, x_TBE: Tensor) -> Tensor:
        """One direction of one layer as a dense left-to-right pass. Returns out_TBH."""
        if x_TBE.is_cuda and torch.is_autocast_enabled("cuda"):
            # Autocast runs cuDNN's recurrences in float16 whatever it was asked for; without loss scaling the gradients
            # of long texts would vanish. In float32 they use TF32.
            with torch.autocast("cuda", enabled=False):
                return self._run(layer, direction, x_TBE.float())
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = [getattr(self.rnn, f"{name}_l{layer}{direction}") for name in names]
        zeros_1BH = x_TBE.new_zeros(1, x_TBE.shape[1], self.rnn.hidden_size)
        # Has biases, one layer, no dropout, not bidirectional, time first.
        how = (True, 1, 0.0, self.training, False, False)
        match self.cell:
            case "lstm":
                out_TBH: Tensor = torch.lstm(x_TBE, (zeros_1BH, zeros_1BH), weights, *how)[0]
            case "gru":
                out_TBH = torch.gru(x_TBE, zeros_1BH, weights, *how)[0]
            case "rnn":
                out_TBH = torch.rnn_tanh(x_TBE, zeros_1BH, weights, *how)[0]
        return out_TBH


def _last(out_TBH: Tensor, lengths_B: Tensor) -> Tensor:
    """Each row's output at its last token."""
    last_1B1 = (lengths_B - 1)[None, :, None].to(torch.int64)
    return out_TBH.gather(0, last_1B1.expand(1, -1, out_TBH.shape[2]))[0]


def _maximum(out_TBH: Tensor, lengths_B: Tensor) -> Tensor:
    """Each row's maximum over its tokens, for each unit."""
    return out_TBH.masked_fill(_is_padding(out_TBH, lengths_B), float("-inf")).amax(dim=0)


def _mean(out_TBH: Tensor, lengths_B: Tensor) -> Tensor:
    """Each row's mean over its tokens, for each unit; summed in float32."""
    sums_BH = out_TBH.masked_fill(_is_padding(out_TBH, lengths_B), 0.0).sum(dim=0, dtype=torch.float32)
    return (sums_BH / lengths_B[:, None]).to(out_TBH.dtype)


def _is_padding(out_TBH: Tensor, lengths_B: Tensor) -> Tensor:
    return (torch.arange(out_TBH.shape[0], device=lengths_B.device)[:, None] >= lengths_B)[:, :, None]


def _reversal(length: int, lengths_B: Tensor) -> Tensor:
    """Index that reverses each row within its own length and leaves its padding in place; its own inverse."""
    steps_T1 = torch.arange(length, device=lengths_B.device)[:, None]
    reversal_TB = torch.where(steps_T1 < lengths_B, lengths_B - 1 - steps_T1, steps_T1)
    return reversal_TB[:, :, None].to(torch.int64)


def _reorder(x_TBE: Tensor, index_TB1: Tensor) -> Tensor:
    """Take each row's steps in the order of `index_TB1`."""
    return x_TBE.gather(0, index_TB1.expand(-1, -1, x_TBE.shape[2]))
