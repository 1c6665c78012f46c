"""Device programs without autograd: the contract.

A kernel is known by its name here. Its programs for the CPU are in `kernels/cpu/NAME.py`, for the GPU in
`kernels/gpu/NAME.py`, with the same functions and signatures; a call goes to the device of its first tensor ("meta"
tensors, which have no values, go to the GPU's programs, to see what these would launch).
`forward` returns the result and what `backward` needs besides the inputs; `backward` takes the result's gradient
first. Where it takes `into`, a buffer like the weight (or one per weight, in a tuple), it adds the weight's gradient
to that and returns None in its place. Shapes are (rows, columns) of contiguous tensors unless said otherwise; "..."
stands for any leading dimensions. Results are fresh tensors of the inputs' floating dtype unless a line says "in
place"; where that has less than 32 bits, arithmetic, statistics (rstd, lse) and losses are float32.
"""

from __future__ import annotations

from . import memory
from .dispatch import (
    Kernel, emulated_bfloat16, float32_sums, gpu_memory, programs, rounded, set_threads, tf32_products, threads,
)
from .memory import copy, empty, empty_like, zeros
from .stacks import Stack

__all__ = ["Kernel", "Stack", "copy", "emulated_bfloat16", "empty", "empty_like", "float32_sums", "gpu_memory",
           "memory", "programs", "rounded", "set_threads", "tf32_products", "threads", "zeros"]

linear = Kernel("linear", """y = x W^T (+ residual).

    forward(x, weight, residual=None) -> y
    backward(dy, x, weight, into=None) -> dx, dweight          (the residual's gradient is dy)
    x (..., d_in), weight (d_out, d_in), y and residual (..., d_out)
    """)

rms_norm = Kernel("rms_norm", """y = x / sqrt(mean(x^2) + eps) * gain over the last dimension (arXiv 1910.07467).

    forward(x, gain, eps) -> y, rstd
    backward(dy, x, gain, rstd) -> dx, dgain
    add_forward(x, residual, gain, eps) -> total, y, rstd               (total = x + residual, y = rms_norm(total))
    add_backward(dy, dtotal, total, gain, rstd) -> dx, dgain                (dx is the residual's gradient too)
    x, y, residual, total (..., d), gain (d), rstd (...)
    """)

rms_norm_linear = Kernel("rms_norm_linear", """y = rms_norm(x) W^T.

    forward(x, gain, weight, eps) -> y, rstd
    backward(dy, x, gain, weight, rstd, into=None, dresidual=None) -> dx, dgain, dweight
    x (..., d_in), gain (d_in), weight (d_out, d_in), y (..., d_out), rstd (...); dresidual (..., d_in) is added to dx
    """)

swiglu_linear = Kernel("swiglu_linear", """y = (silu(gate) * up) W^T (+ residual), h = [gate | up] (arXiv 2002.05202).

    forward(h, weight, residual=None) -> y
    backward(dy, h, weight, into=None) -> dh, dweight          (the residual's gradient is dy)
    h (..., 2 f), weight (d_out, f), y and residual (..., d_out)
    """)

feed_forward = Kernel("feed_forward", """y = x + (silu(gate) * up) W_down^T, [gate | up] = rms_norm(x) W_gate_up^T.

    forward(x, gain, gate_up, down, eps) -> y, h, rstd
    backward(dy, x, gain, gate_up, down, h, rstd, into=(None, None)) -> dx, dgain, dgate_up, ddown   (may overwrite h)
    x, y (..., d), gain (d), gate_up (2 f, d), down (d, f), h (..., 2 f): [gate | up], rstd (...)
    """)

attention = Kernel("attention", """Attention on a packed projection, with optional QK-norm and RoPE.

    forward(qkv, n_heads, n_kv_heads, cos, sin, q_gain, k_gain, eps, doc_start,
            causal=True, window=None, alibi=None, softcap=None, distance=None) -> out, lse
    backward(dout, out, lse, qkv, <the same arguments>) -> dqkv, dq_gain, dk_gain, dreach, doffset
    qkv (B, T, (H + 2 K) D): queries of H heads, keys of K, values of K; head h reads key head h // (H / K)
    cos, sin (>= T, R / 2), R <= D, or None: rotates features (i, i + R/2) of the first R (arXiv 2104.09864);
    gains (D) or None: RMS norm of queries and keys per head, before the rotation.
    Scores s = q . k / sqrt(D) become softcap tanh(s / softcap), then s / (1 + reach |i - j|), then less alibi |i - j|,
    slopes float32 (H), and less offset if j < i; distance is (reach, offset), each (1), or None.
    Query i sees key j if j <= i or not `causal`, |i - j| < window, and neither lies before what the other sees:
    doc_start int32 (B, T) or None, never decreasing, is the first position in the row that a token may see. A token
    whose doc_start lies past it sees nothing: its output is 0, its lse -inf, and it gets no gradient.
    out (B, T, H D); lse (B, H, T): log-sum-exp of the scores, natural logarithm
    """)

talking_heads = Kernel("talking_heads", """Causal attention that mixes its heads before and after the softmax.

    forward(qkv, n_heads, reach, offset, before, after, doc_start=None) -> out, lse
    backward(dout, lse, qkv, <the same arguments>) -> dqkv, dreach, doffset, dbefore, dafter
    qkv (B, T, 3 H D): queries of H heads, keys, values; reach and offset (1,); before and after (H, H)
    s_h = q_h . k_h / sqrt(D) / (1 + reach (i - j)) - offset [j < i];  p = softmax_j(before s);  out = (after p) v
    Talking heads: arXiv 2003.02436. doc_start as in `attention`. out (B, T, H D); lse (B, H, T): log-sum-exp of the
    mixed scores.
    """)

linear_cross_entropy = Kernel("linear_cross_entropy", """Cross-entropy of the logits x W^T: see cross_entropy.

    forward(x, weight, targets, normalizer, ignore_index=-100, with_gradient=True, z_loss=0.0, softcap=None, into=None)
        -> loss, dx, dweight
    x (..., d), weight (vocabulary, d), targets int64 (...); dweight float32 for a weight of less than 32 bits. The
    gradients are for a loss gradient of 1, and None without `with_gradient`. Logits of a bounded number of rows exist
    at a time.
    """)

elementwise = Kernel("elementwise", """Operations element by element, with broadcasting; operands of any strides.

    apply(name, *operands) -> result
    cast(x, dtype) -> result
    accumulate(into, x): into += x in place, same shape, into contiguous; x may be of less precision
    scale(x, factor): x *= factor in place, x contiguous; factor is a tensor with one element
    Operands have one dtype (the condition of `where` is bool); comparisons give bool.
    Names: add sub mul div pow neg abs maximum minimum clamp(x, low, high) exp log sqrt tanh sigmoid relu relu_squared
    silu gelu gelu_tanh where(condition, a, b) eq ne lt le gt ge logical_not. For gradients, with y the result:
    abs_backward relu_squared_backward silu_backward gelu_backward gelu_tanh_backward (dy, x); sqrt_backward
    tanh_backward sigmoid_backward relu_backward (dy, y); clamp_backward (dy, x, low, high); divisor_backward (dy, y,
    divisor); pow_base_backward (dy, x, exponent); pow_exponent_backward (dy, x, exponent, y); larger_backward and
    smaller_backward (dy, a, b): the share of a in max and min, half at a tie; exp_shifted (dy, x, shift): dy e^(x -
    shift); square_difference (x, y): (x - y)^2; scaled_difference (dy, x, y): dy (x - y)
    """)

reduce = Kernel("reduce", """Reductions.

    reduce(x, name, dims) -> y       (name sum, max or min; the dimensions `dims` become 1; integers stay integers)
    argmax(x), argmin(x) -> int64    (over the last dimension; the first of equals)
    """)

softmax = Kernel("softmax", """Softmax over the last dimension; an element of -inf weighs exactly 0.

    forward(x) -> y;       backward(dy, y) -> dx              (softmax)
    log_forward(x) -> y;   log_backward(dy, y) -> dx          (log-softmax)
    logsumexp(x) -> lse (...)
    """)

cross_entropy = Kernel("cross_entropy", """Sum of (lse - logit of the target + z_loss lse^2) / normalizer, in nats.

    forward(logits, targets, normalizer, ignore_index=-100, z_loss=0.0, softcap=None) -> loss, top, total
    backward(dloss, logits, targets, top, total, normalizer, ignore_index=-100, z_loss=0.0, softcap=None) -> dlogits
    in_place(logits, targets, losses, normalizer, ignore_index=-100, z_loss=0.0, softcap=None, classes=None,
             with_gradient=True): `losses` (rows) gets each row's loss, not divided; contiguous logits (rows, columns)
        become their gradient for a loss gradient of 1; columns from `classes` on are padding, whose gradient is 0
    count(targets, ignore_index=-100) -> float32 (): the number of targets that count, or 1 if none does
    logits (..., classes), with a softcap c replaced by c tanh(logits / c) (arXiv 2408.00118, section 2), targets int64
    (...): rows whose target is `ignore_index` count nothing; lse: log-sum-exp (z-loss: arXiv 2204.02311, section 5);
    normalizer: a number, or a tensor with one element, which a GPU need not wait for; loss ();
    top and total (...): a row's largest logit, and its sum of e^(logit - top), for backward
    """)

layer_norm = Kernel("layer_norm", """y = (x - mean) / sqrt(variance + eps) * gain + bias (arXiv 1607.06450).

    forward(x, gain, bias, eps) -> y, mean, rstd
    backward(dy, x, gain, mean, rstd) -> dx, dgain, dbias
    Over the last dimension. x, y (..., d), gain and bias (d), mean and rstd (...)
    """)

matmul = Kernel("matmul", """Matrix products.

    matmul(a, b) -> a @ b    (a (..., n, k), b (..., k, m) of any strides; leading dimensions are broadcast)
    """)

rope = Kernel("rope", """Rotary position embedding (arXiv 2104.09864).

    rotate(x, cos, sin) -> y    (x, y (B, T, H, D), cos and sin (T, R / 2); the inverse is the same with -sin)
    Pairs are among the first R <= D features, i with i + R/2; the others stay as they are.
    """)

qk_norm_rope = Kernel("qk_norm_rope", """What `attention` does to queries and keys before the scores, for decoding.

    in_place(packed, heads, key_heads, dim, cos, sin, q_gain, k_gain, eps)
    packed (B, T, at least (heads + key_heads) dim), contiguous: the first heads, then the key heads are normed and
    rotated in place, the rest stays; cos and sin (at least T, R / 2), R <= dim, or both None; gains (dim) or both None.
    """)

dropout = Kernel("dropout", """Zeroes element i with probability p, scales the others by 1 / (1 - p).

    apply(x, p, seed, offset, stride=1) -> y       (its own gradient: apply it to dy)
    uniform(like, seed, offset) -> u     (the float32 numbers in [0, 1) it draws; an element stays where u >= p)
    Element i (in contiguous order) draws the first word of Philox-4x32-10 with 64-bit key `seed` and 64-bit counter
    `offset * stride + i`, as triton.language.rand(seed, offset * stride + i) does; uniform's stride is 1. On a GPU
    seed and offset may be int64 tensors with one element.
    """)

swiglu = Kernel("swiglu", """y = silu(gate) * up for h = [gate | up] (arXiv 2002.05202).

    forward(h) -> y;  backward(dy, h) -> dh      (h (..., 2 f), y (..., f))
    """)

indexing = Kernel("indexing", """Picking elements, and its gradients; repeated positions add up in order.

    take(x, index) -> x[index];   take_backward(dy, index, shape) -> dx
        index: tuple of slices and integer or boolean tensors, NumPy's rules
    gather(x, index, dim) -> y;   gather_backward(dy, index, dim, shape) -> dx
        y[i][j][k] = x[i][index[i][j][k]][k] for dim 1; index within x's size in the other dimensions
        On a GPU a position out of range gives NaN, or the largest whole number, and has no gradient.
    put(x, index, shape) -> zeros of `shape` with x at the basic index
    cat(*tensors, dim=dim) -> y
    """)

embedding = Kernel("embedding", """Rows of a table.

    forward(ids, weight) -> y
    backward(dy, ids, rows, into=None) -> dweight              (deterministic: rows of one id add up in order)
    ids int64 (...), weight (rows, d), y (..., d). On a GPU an id that is no row gives NaN and has no gradient.
    """)

routing = Kernel("routing", """Choosing experts for tokens (arXiv 1701.06538), and their rows grouped by expert.

    forward(logits, indices, score, normalised, bias=None, noise=None) -> gates, scores
    backward(dgates, dscores, logits, indices, gates, scores, score, normalised) -> dlogits
    count(indices, experts) -> counts
    group(indices, experts) -> offsets, order, place
    logits, scores (..., E): score is "softmax" or "sigmoid"; gates (..., k). At least float32, also for half logits.
    indices int64 (..., k), written in place by forward: the experts with the largest logits, or scores + bias (E)
    (arXiv 2408.15664), or logits + noise (..., E) (+ bias); the lowest of equals first; NaN counts as -inf.
    gates: the scores of the chosen; normalised: softmax over their logits, or sigmoid scores / (their sum + 1e-20)
    counts int32 (E): how often each expert was chosen; offsets int32 (E + 1): where its rows begin;
    order int32 (tokens k): pair (token k + choice) of each row, ascending within an expert; place int32 (..., k): row
    of each pair
    """)

experts = Kernel("experts", """y[t] = (residual[t] +) sum over c of gates[t, c] expert(x[t], indices[t, c]).

    forward(x, gates, groups, gate_up, down, residual=None) -> y, h
    backward(dy, x, gates, groups, gate_up, down, h, into=(None, None)) -> dx, dgates, dgate_up, ddown
    expert(x, e) = (silu(gate) * up) down[e]^T with [gate | up] = x gate_up[e]^T
    x, y, residual (..., d), gates (..., k) of the dtype of x or float32, groups what `routing.group` gives,
    gate_up (E, 2 f, d), down (E, d, f), h (tokens k, 2 f): [gate | up] of the grouped rows. The residual's gradient is
    dy. An expert without tokens has gradients of 0. The sums over c and over an expert's rows have one order.
    """)

decode_attention = Kernel("decode_attention", """Attention of the newest token of each sequence, over its cache.

    forward(q, k_cache, v_cache, lengths, window=None, alibi=None, softcap=None, distance=None) -> out
    q and out (B, H, D), k_cache and v_cache (B, capacity, K, D), contiguous; lengths int32 (B): tokens in the cache,
    the newest included; head h reads key head h // (H / K). Scores are scaled by 1 / sqrt(D). A length of 0 gives 0.
    The other arguments are those of `attention`: window in tokens, the newest included; alibi float32 (H); distance
    (reach, offset), each (1).
    """)

sampling = Kernel("sampling", """From logits to the next token.

    probabilities(logits, context=None, **settings) -> weights
    draw(weights, u) -> ids                (on the CPU: inverts the cumulative distribution at u float64 (b) in [0, 1))
    sample(logits, seed, offset, context=None, **settings) -> ids                         (row i draws at number
        `offset + i` of the stream `seed` of kernels.dropout; offset a number or int64 (1) on the logits' device)
    logits (b, v); context int64 (b, c): ids seen, negative ones count nothing; weights (b, v), sum 1, float64 on the
    CPU and float32 on the GPU; ids int64 (b). A row whose logits are not all finite: weights NaN, id -1.
    Settings, in this order: repetition_penalty=1.0 divides positive logits of ids seen and multiplies negative ones
    (arXiv 1909.05858); temperature=1.0 divides, 0 leaves the likeliest id; top_k=0 keeps the k likeliest (0: all);
    top_p=1.0 of these the fewest whose weights sum to at least p (arXiv 1904.09751). Of equals, lower ids first.
    """)

newton_schulz = Kernel("newton_schulz", """The nearest orthogonal matrix, roughly: Muon's (Jordan et al. 2024).

    orthogonalise(x, coefficients, eps=1e-7, margin=1.0, dtype=None, out=None) -> y, or `out`, which may be x
    x (n, rows, columns), a stack; y of its shape, computed and returned in `dtype` (that of x if None).
    Each matrix, divided by (margin times its Frobenius norm + eps), takes one step X <- a X + b A X + c A A X with
    A = X X^T for each (a, b, c) of `coefficients`: a singular value s becomes a s + b s^3 + c s^5, vectors stay.
    """)

optimizer = Kernel("optimizer", """Passes over flat parameter buffers (n), n a multiple of 64, in place.

    norm(x, out=None) -> float, or `out`: float64 (1) on x's device, filled without waiting for it
        2-norm of all elements of a tensor of any shape, summed in float64
    begin_step(control, norm, beta1=, beta2=, clip_norm=0.0)
        What adamw needs of a step whose gradients have this norm, a float64 (1). One that is not finite: no step.
    adamw(weights, grads, exp_avg, exp_avg_sq, segments, control, working=None, beta1=, beta2=, eps=)
        One step of AdamW (arXiv 1711.05101, algorithm 2), gradients scaled so that their norm is at most `clip_norm`.
    control float64 (8): learning rate, which the caller writes before a step; steps made; steps left out; last norm;
    and for adamw whether to step, factor of the gradients, factors 1 / (1 - beta^steps) of both moments.
    average(mean, weights, control, decay=)
        mean += (1 - decay) / (1 - decay^steps made) (weights - mean), the mean weighted by decay^age; or nothing when
        the step was left out
    segments: (bounds int64 (s, 2), factors (s, 2)): the weights from start to stop, multiples of 64, have this weight
    decay and this factor of the learning rate; s is small, segments do not overlap, weights in none stay as they are.
    weights, grads, exp_avg, exp_avg_sq, factors of one dtype; working of any: receives the new weights, rounded
    """)

muon = Kernel("muon", """Muon (Jordan et al. 2024) over stacks of matrices in flat parameter buffers (n), in place.

    step(weights, grads, momentum, stacks, control, working=None, squares=None, lr_factor=, decay=, beta=, row_beta=,
         nesterov=, coefficients=, margin=, dtype=)
    For each matrix of each of `stacks` (kernels.Stack; they do not overlap), g being its gradient times the factor in
    control: m = beta m + (1 - beta) g; O orthogonalises beta m + (1 - beta) g with nesterov, else m, in `dtype`;
    weights -= lr (scale O + decay weights), lr being control's times lr_factor. Elements in no stack stay as they are.
    squares: NorMuon (arXiv 2510.05491, algorithm 1), one (count, rows) of the weights' dtype for each stack, else None:
    s = row_beta s + (1 - row_beta) mean of each row's O^2; O's rows are divided by sqrt(s), and O is scaled back to the
    Frobenius norm of an orthogonal matrix, sqrt(min(rows, columns)).
    control, working: as for optimizer.adamw
    """)
