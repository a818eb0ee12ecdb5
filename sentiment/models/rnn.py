"""Recurrent classifiers: embedding → stacked (bi)directional LSTM → dropout → linear on the last hidden states.

The weights are an `nn.LSTM`'s, under its own names, so state dicts are the ones people know. The forward pass is ours:
each direction of each layer runs as one dense left-to-right pass, the backward one over rows reversed within their own
length, and the state is read at each row's last token. That equals a packed sequence exactly, whatever else is in the
batch, and needs no packing: oneDNN and cuDNN's persistent kernels want dense input, and any batch shape will do.

Shapes: B batch, T time (tokens, padded), E embedding or layer input, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RecurrentClassifier(nn.Module):
    """LSTM classifier with one logit for the positive class.

    The defaults are those of the notebook "Upgraded Sentiment Analysis" (bentrevett/pytorch-sentiment-analysis):
    25,002 × 100 embeddings, hidden 256, two layers, both directions, dropout 0.5; 4,810,857 parameters.

    Args:
        vocabulary_size: Rows of the embedding, special tokens included.
        embedding_dim: Width of a token's vector.
        hidden_dim: Width of one direction's state.
        num_layers: Stacked layers.
        bidirectional: Read the text from both ends.
        dropout: Share of values zeroed on the embeddings, between layers and before the linear layer, in training.
        embedding_std: Spread of fresh word vectors. PyTorch's default of 1 drowns what an LSTM learns in its first
            epochs; 0.1 is about the size of its own weights.
        word_dropout: Share of tokens replaced by `unk_id` in training (Iyyer et al. 2015), so that the vector of
            unknown words is trained and no single word is relied on.
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
        embedding_std: float = 1.0,
        word_dropout: float = 0.0,
        pad_id: int = 1,
        unk_id: int = 0,
    ) -> None:
        super().__init__()
        self.word_dropout = word_dropout
        self.unk_id = unk_id
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim, padding_idx=pad_id)
        with torch.no_grad():
            self.embedding.weight.mul_(embedding_std)
        # Holds the weights; its own forward is not called. Dropout between layers is applied below.
        self.rnn = nn.LSTM(embedding_dim, hidden_dim, num_layers, bidirectional=bidirectional)
        self.fc = nn.Linear(hidden_dim * (2 if bidirectional else 1), 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Compute the logit of the positive class.

        Args:
            ids_BT: Token ids, padded on the right, int32 or int64.
            lengths_B: Real tokens of each row, at least 1.

        Returns:
            logits_B, float32 (bfloat16 under autocast).
        """
        if self.training and self.word_dropout > 0:
            dropped_BT = torch.rand(ids_BT.shape, device=ids_BT.device) < self.word_dropout
            ids_BT = ids_BT.masked_fill(dropped_BT, self.unk_id)
        # Time first: a step's rows lie side by side, which is the layout that the recurrent kernels read.
        ids_TB = ids_BT.t().contiguous()
        hidden_BH = self._last_states(self.dropout(self.embedding(ids_TB)), lengths_B)
        logits_B1: Tensor = self.fc(self.dropout(hidden_BH))
        return logits_B1.squeeze(1)

    def _last_states(self, x_TBE: Tensor, lengths_B: Tensor) -> Tensor:
        """Run all layers; return the last layer's states after each row's last token, directions side by side."""
        last_1B1 = (lengths_B - 1)[None, :, None].to(torch.int64)
        reversal_TB1 = _reversal(x_TBE.shape[0], lengths_B)
        for layer in range(self.rnn.num_layers):
            outputs_TBH = [self._run(layer, "", x_TBE)]
            if self.rnn.bidirectional:
                outputs_TBH.append(self._run(layer, "_reverse", _reorder(x_TBE, reversal_TB1)))
            if layer + 1 < self.rnn.num_layers:
                if self.rnn.bidirectional:
                    outputs_TBH[1] = _reorder(outputs_TBH[1], reversal_TB1)
                x_TBE = self.dropout(torch.cat(outputs_TBH, dim=2))
        states_BH = [out_TBH.gather(0, last_1B1.expand(1, -1, out_TBH.shape[2]))[0] for out_TBH in outputs_TBH]
        return torch.cat(states_BH, dim=1)

    def _run(self, layer: int, direction: str, x_TBE: Tensor) -> Tensor:
        """One direction of one layer as a dense left-to-right pass. Returns out_TBH."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        weights = [getattr(self.rnn, f"{name}_l{layer}{direction}") for name in names]
        zeros_1BH = x_TBE.new_zeros(1, x_TBE.shape[1], self.rnn.hidden_size)
        out_TBH: Tensor = torch.lstm(x_TBE, (zeros_1BH, zeros_1BH), weights, True, 1, 0.0, self.training, False, False)[
            0
        ]
        return out_TBH


def _reversal(length: int, lengths_B: Tensor) -> Tensor:
    """Index that reverses each row within its own length and leaves its padding in place; its own inverse."""
    steps_T1 = torch.arange(length, device=lengths_B.device)[:, None]
    reversal_TB = torch.where(steps_T1 < lengths_B, lengths_B - 1 - steps_T1, steps_T1)
    return reversal_TB[:, :, None].to(torch.int64)


def _reorder(x_TBE: Tensor, index_TB1: Tensor) -> Tensor:
    """Take each row's steps in the order of `index_TB1`."""
    return x_TBE.gather(0, index_TB1.expand(-1, -1, x_TBE.shape[2]))
