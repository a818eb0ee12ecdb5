"""Stacked (bi)directional recurrences as dense left-to-right passes: exact without packing.

Each direction of each layer runs as one dense pass, the backward one over rows reversed within their own length, and
the state is read at each row's last token. That equals a packed sequence exactly, whatever else is in the batch, and
needs no packing: oneDNN and cuDNN's persistent kernels want dense input, and any batch shape will do.

Shapes: B batch, T time (tokens, padded), E layer input, H hidden, of all directions where both are joined.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from sentiment.models.config import Pooling


def pooled_states(
    rnn: nn.RNNBase,
    x_TBE: Tensor,
    lengths_B: Tensor,
    *,
    dropout: nn.Module,
    pooling: Pooling = "last",
    state_layers: int = 1,
) -> Tensor:
    """Run all layers and return what a head sees, directions side by side.

    Args:
        rnn: Holds the weights; its own forward is not called.
        x_TBE: Input, time first: a step's rows lie side by side, which is the layout that the recurrent kernels read.
        lengths_B: Real tokens of each row, at least 1.
        dropout: Applied between layers.
        pooling: "last", the state after each row's last token; "max", each unit's maximum over the row's tokens;
            "concat", last, maximum and mean side by side (Howard & Ruder 2018, section 3.3).
        state_layers: With "last": layers from the top whose last states are returned side by side.

    Returns:
        pooled_BH
    """
    # Index that reverses each row within its own length and leaves its padding in place; its own inverse. Of the
    # N = T × B steps of all rows: taking whole vectors is faster than a gather, which copies number by number.
    num_rows = len(lengths_B)
    row_B = torch.arange(num_rows, device=lengths_B.device)
    step_T1 = torch.arange(x_TBE.shape[0], device=lengths_B.device)[:, None]
    is_padding_TB1 = (step_T1 >= lengths_B)[:, :, None]
    reversal_N = (torch.where(step_T1 < lengths_B, lengths_B - 1 - step_T1, step_T1) * num_rows + row_B).flatten()
    last_B = (lengths_B - 1) * num_rows + row_B

    def reverse(x_TBE: Tensor) -> Tensor:
        return x_TBE.flatten(0, 1).index_select(0, reversal_N).view_as(x_TBE)

    def maxima() -> list[Tensor]:
        return [out_TBH.masked_fill(is_padding_TB1, float("-inf")).amax(dim=0) for out_TBH in outputs_TBH]

    states_BH: list[Tensor] = []
    for layer in range(rnn.num_layers):
        outputs_TBH = [run_direction(rnn, layer, "", x_TBE)]
        if rnn.bidirectional:
            outputs_TBH.append(run_direction(rnn, layer, "_reverse", reverse(x_TBE)))
        if layer >= rnn.num_layers - state_layers:
            states_BH += [out_TBH.flatten(0, 1).index_select(0, last_B) for out_TBH in outputs_TBH]
        if layer + 1 < rnn.num_layers:
            if rnn.bidirectional:
                outputs_TBH[1] = reverse(outputs_TBH[1])
            x_TBE = dropout(torch.cat(outputs_TBH, dim=2))
    # Maximum and mean don't mind that the backward direction's steps still lie in its own order.
    if pooling == "concat":
        sums_BH = [out.masked_fill(is_padding_TB1, 0.0).sum(dim=0, dtype=torch.float32) for out in outputs_TBH]
        means_BH = [(sum_BH / lengths_B[:, None]).to(outputs_TBH[0].dtype) for sum_BH in sums_BH]
        return torch.cat([*states_BH, *maxima(), *means_BH], dim=1)
    if pooling == "max":
        return torch.cat(maxima(), dim=1)
    return torch.cat(states_BH, dim=1)


def pooled_width(hidden_dim: int, bidirectional: bool, pooling: Pooling, state_layers: int = 1) -> int:
    """Width of what `pooled_states` returns."""
    parts = {"last": state_layers, "max": 1, "concat": 3}[pooling]
    return hidden_dim * (2 if bidirectional else 1) * parts


def run_direction(rnn: nn.RNNBase, layer: int, direction: str, x_TBE: Tensor) -> Tensor:
    """Run one direction of one layer as a dense left-to-right pass.

    Args:
        rnn: Holds the weights.
        layer: From 0.
        direction: "" or "_reverse", as PyTorch names the weights.
        x_TBE: Input, already reversed for the backward direction.

    Returns:
        out_TBH
    """
    device = x_TBE.device.type
    if torch.is_autocast_enabled(device) and not _has_half_kernel(device, rnn.mode):
        with torch.autocast(device, enabled=False):
            return run_direction(rnn, layer, direction, x_TBE.float())
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = [getattr(rnn, f"{name}_l{layer}{direction}") for name in names]
    zeros_1BH = x_TBE.new_zeros(1, x_TBE.shape[1], rnn.hidden_size)
    # Has biases, one layer, no dropout, not bidirectional, time first.
    how = (True, 1, 0.0, rnn.training, False, False)
    match rnn.mode:
        case "LSTM":
            out_TBH: Tensor = torch.lstm(x_TBE, (zeros_1BH, zeros_1BH), weights, *how)[0]
        case "GRU":
            out_TBH = torch.gru(x_TBE, zeros_1BH, weights, *how)[0]
        case "RNN_TANH":
            out_TBH = torch.rnn_tanh(x_TBE, zeros_1BH, weights, *how)[0]
        case mode:
            raise AssertionError(mode)
    return out_TBH


@cache
def _has_half_kernel(device: str, mode: str) -> bool:
    """Whether a recurrence may run under autocast to bfloat16; otherwise it runs in float32.

    On CUDA autocast runs cuDNN's in float16 whatever it was asked for; without loss scaling the gradients of long texts
    would vanish. In float32 they use TF32. On CPUs oneDNN has no bfloat16 LSTM for those below AVX-512, and PyTorch
    fails there instead of taking its own kernel: whether it does is tried once.
    """
    if device == "cuda" or mode != "LSTM":
        return device != "cuda"
    zeros_1BH, zeros_41, zeros_4 = torch.zeros(1, 1, 1), torch.zeros(4, 1), torch.zeros(4)
    weights = [zeros_41, zeros_41, zeros_4, zeros_4]
    try:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            torch.lstm(zeros_1BH, (zeros_1BH, zeros_1BH), weights, True, 1, 0.0, False, False, False)
    except RuntimeError:
        return False
    return True
