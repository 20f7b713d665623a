/* Kernels for processors where a pass of torch's operators each would read memory again and again.
 *
 * Compiled by the machine's own C compiler when first used (see __init__.py).  Every function has a
 * version in torch that gives the same; numbers are float32 inside, whatever the type of arrays.
 * Arrays are float32, or bfloat16 where `narrow` is 1; their last axis is contiguous, and strides
 * count elements.  `threads` parts are computed in parallel; results do not depend on which thread
 * runs when.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 12 };
#elif defined(__AVX2__)
enum { LANES = 8, ROWS = 6 };
#else
enum { LANES = 4, ROWS = 8 };
#endif
enum { COLUMNS = 2 * LANES }; /* of a tile that a product keeps in registers, ROWS high */

typedef float vf __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef ptrdiff_t at;

#define INLINE static inline __attribute__((always_inline))

INLINE at least(at a, at b) { return a < b ? a : b; }
INLINE vf all(float x) { return x - (vf){0}; }
INLINE vf pick(vi where, vf a, vf b) { return (vf)((where & (vi)a) | (~where & (vi)b)); }

INLINE float sum(vf x) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += x[i];
  return total;
}

/* The first `count` lanes of x, and `rest` in the others. */
INLINE vf kept(vf x, at count, float rest) {
  if (count >= LANES) return x;
  vi lane;
  for (int k = 0; k < LANES; k++) lane[k] = k;
  return pick((vi)(lane < (int32_t)count), x, all(rest));
}

/* LANES elements from `i` on; the last of a row may be fewer, the rest is zero. */
INLINE vf load(const void *from, at i, at count, int narrow) {
  if (count >= LANES) {
    if (!narrow) return *(const vf *)((const float *)from + i);
    vu wide = __builtin_convertvector(*(const vh *)((const uint16_t *)from + i), vu);
    return (vf)(wide << 16);
  }
  vf out = {0};
  if (narrow) {
    vu bits = {0};
    for (int k = 0; k < count; k++) bits[k] = (uint32_t)((const uint16_t *)from)[i + k] << 16;
    out = (vf)bits;
  } else {
    for (int k = 0; k < count; k++) out[k] = ((const float *)from)[i + k];
  }
  return out;
}

/* Rounds to the nearest bfloat16, ties to even; what is not a number stays so. */
INLINE vh rounded(vf x) {
#if defined(__AVX512BF16__)
  return (vh)_mm512_cvtneps_pbh((__m512)x);
#else
  vu bits = (vu)x;
  vu up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  vu none = (vu)((bits & 0x7fffffff) > 0x7f800000);
  return __builtin_convertvector((none & 0x7fc0) | (~none & up), vh);
#endif
}

INLINE void store(void *to, at i, at count, vf x, int narrow) {
  if (!narrow) {
    if (count >= LANES) *(vf *)((float *)to + i) = x;
    else for (int k = 0; k < count; k++) ((float *)to)[i + k] = x[k];
    return;
  }
  vh half = rounded(x);
  if (count >= LANES) *(vh *)((uint16_t *)to + i) = half;
  else for (int k = 0; k < count; k++) ((uint16_t *)to)[i + k] = half[k];
}

INLINE const void *row(const void *from, at elements, int narrow) {
  return (const char *)from + elements * (narrow ? 2 : 4);
}

/* e^x for |x| <= 87, to 2 units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2].
 * What is not a number stays so. */
INLINE vf exponential(vf x) {
  const vf shift = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
  vf n = x * 1.44269504f + shift;
  vi power = (vi)n - (vi)shift;
  n -= shift;
  vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return (vf)((vi)p + (power << 23));
}

/* Of x <= 0, as softmax needs it: 0 below -87. */
INLINE vf decay(vf x) {
  vi tiny = (vi)(x < all(-87.0f));
  return pick(tiny, all(0.0f), exponential(pick(tiny, all(-87.0f), x)));
}

INLINE vf sigmoid(vf x) {
  x = pick((vi)(x < all(-87.0f)), all(-87.0f), x);
  x = pick((vi)(x > all(87.0f)), all(87.0f), x);
  return 1.0f / (1.0f + exponential(-x));
}

/* ---- root-mean-square norm ---- */

INLINE void norm_rows(const void *x, at stride, const float *gain, void *y, float *inverse, at first,
                      at last, at width, float eps, int narrow) {
  for (at r = first; r < last; r++) {
    const void *in = row(x, r * stride, narrow);
    void *out = (void *)row(y, r * width, narrow);
    vf squares = {0};
    for (at i = 0; i < width; i += LANES) {
      vf v = load(in, i, width - i, narrow);
      squares += v * v;
    }
    inverse[r] = 1.0f / sqrtf(sum(squares) / (float)width + eps);
    for (at i = 0; i < width; i += LANES) {
      vf v = load(in, i, width - i, narrow) * inverse[r];
      if (gain) v *= load(gain, i, width - i, 0);
      store(out, i, width - i, v, narrow);
    }
  }
}

/* y [rows, width] = x / sqrt(mean(x^2) + eps) * gain, and the factor of each row. */
void krzem_norm(const void *x, at stride, const float *gain, void *y, float *inverse, at rows,
                at width, float eps, int narrow, at threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (at t = 0; t < threads; t++) {
    at first = rows * t / threads, last = rows * (t + 1) / threads;
    if (narrow) norm_rows(x, stride, gain, y, inverse, first, last, width, eps, 1);
    else norm_rows(x, stride, gain, y, inverse, first, last, width, eps, 0);
  }
}

INLINE void norm_gradient_rows(const void *g, at g_stride, const void *x, at x_stride,
                               const float *gain, const float *inverse, void *dx, float *d_gain,
                               at first, at last, at width, int narrow) {
  for (at r = first; r < last; r++) {
    const void *gr = row(g, r * g_stride, narrow), *xr = row(x, r * x_stride, narrow);
    void *out = (void *)row(dx, r * width, narrow);
    float scale = inverse[r];
    vf along = {0};
    for (at i = 0; i < width; i += LANES) {
      vf gi = load(gr, i, width - i, narrow), product = gi * load(xr, i, width - i, narrow);
      if (gain) {
        store(d_gain, i, width - i, load(d_gain, i, width - i, 0) + product * scale, 0);
        product *= load(gain, i, width - i, 0);
      }
      along += product;
    }
    float pull = sum(along) * scale * scale * scale / (float)width;
    for (at i = 0; i < width; i += LANES) {
      vf gi = load(gr, i, width - i, narrow) * scale;
      if (gain) gi *= load(gain, i, width - i, 0);
      store(out, i, width - i, gi - load(xr, i, width - i, narrow) * pull, narrow);
    }
  }
}

/* dx [rows, width], and the parts' gradients of the gain [threads, width], zero on entry. */
void krzem_norm_gradient(const void *g, at g_stride, const void *x, at x_stride, const float *gain,
                         const float *inverse, void *dx, float *d_gain, at rows, at width,
                         int narrow, at threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (at t = 0; t < threads; t++) {
    at first = rows * t / threads, last = rows * (t + 1) / threads;
    float *own = d_gain + t * width;
    if (narrow) norm_gradient_rows(g, g_stride, x, x_stride, gain, inverse, dx, own, first, last, width, 1);
    else norm_gradient_rows(g, g_stride, x, x_stride, gain, inverse, dx, own, first, last, width, 0);
  }
}

/* ---- gated activation: silu(gate) * value, both cut at `limit` unless that is infinite ---- */

typedef struct {
  vf gate, value, share;
  vi gate_free, value_free; /* all ones where not cut */
} gated;

INLINE gated activate(vf gate, vf value, float limit, int limited) {
  gated out = {gate, value, {0}, {0}, {0}};
  if (limited) {
    vi high = (vi)(gate > all(limit)), above = (vi)(value > all(limit));
    vi below = (vi)(value < all(-limit));
    out.gate_free = ~high;
    out.value_free = ~(above | below);
    out.gate = pick(high, all(limit), gate);
    out.value = pick(above, all(limit), pick(below, all(-limit), value));
  }
  out.share = sigmoid(out.gate);
  return out;
}

INLINE void gated_rows(const void *gate, at gate_stride, const void *value, at value_stride,
                       void *out, at first, at last, at width, float limit, int limited, int narrow) {
  for (at r = first; r < last; r++) {
    const void *g = row(gate, r * gate_stride, narrow), *v = row(value, r * value_stride, narrow);
    void *o = (void *)row(out, r * width, narrow);
    for (at i = 0; i < width; i += LANES) {
      at n = width - i;
      gated x = activate(load(g, i, n, narrow), load(v, i, n, narrow), limit, limited);
      store(o, i, n, x.gate * x.share * x.value, narrow);
    }
  }
}

/* out [rows, width]. */
void krzem_gated(const void *gate, at gate_stride, const void *value, at value_stride, void *out,
                 at rows, at width, float limit, int narrow, at threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (at t = 0; t < threads; t++) {
    at first = rows * t / threads, last = rows * (t + 1) / threads;
#define RUN(limited, narrow) \
  gated_rows(gate, gate_stride, value, value_stride, out, first, last, width, limit, limited, narrow)
    if (isinf(limit)) { if (narrow) RUN(0, 1); else RUN(0, 0); }
    else { if (narrow) RUN(1, 1); else RUN(1, 0); }
#undef RUN
  }
}

INLINE void gated_gradient_rows(const void *g, const void *gate, at gate_stride, const void *value,
                                at value_stride, void *d_gate, void *d_value, at d_stride, void *out,
                                at first, at last, at width, float limit, int limited, int narrow) {
  for (at r = first; r < last; r++) {
    const void *gr = row(g, r * width, narrow), *ga = row(gate, r * gate_stride, narrow);
    const void *va = row(value, r * value_stride, narrow);
    void *dg = (void *)row(d_gate, r * d_stride, narrow);
    void *dv = (void *)row(d_value, r * d_stride, narrow);
    void *o = out ? (void *)row(out, r * width, narrow) : NULL;
    for (at i = 0; i < width; i += LANES) {
      at n = width - i;
      gated x = activate(load(ga, i, n, narrow), load(va, i, n, narrow), limit, limited);
      vf gi = load(gr, i, n, narrow), active = x.gate * x.share;
      vf to_gate = gi * x.value * (x.share + active * (1.0f - x.share)), to_value = gi * active;
      if (limited) {
        to_gate = (vf)(x.gate_free & (vi)to_gate);
        to_value = (vf)(x.value_free & (vi)to_value);
      }
      store(dg, i, n, to_gate, narrow);
      store(dv, i, n, to_value, narrow);
      if (out) store(o, i, n, active * x.value, narrow);
    }
  }
}

/* Gradients of gate and value from g [rows, width], and the activation again where
 * `out` is not null. */
void krzem_gated_gradient(const void *g, const void *gate, at gate_stride, const void *value,
                          at value_stride, void *d_gate, void *d_value, at d_stride, void *out,
                          at rows, at width, float limit, int narrow, at threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (at t = 0; t < threads; t++) {
    at first = rows * t / threads, last = rows * (t + 1) / threads;
#define RUN(limited, narrow)                                                                       \
  gated_gradient_rows(g, gate, gate_stride, value, value_stride, d_gate, d_value, d_stride, out,   \
                      first, last, width, limit, limited, narrow)
    if (isinf(limit)) { if (narrow) RUN(0, 1); else RUN(0, 0); }
    else { if (narrow) RUN(1, 1); else RUN(1, 0); }
#undef RUN
  }
}

/* ---- logits of a vocabulary, of which `own` is the target's place or negative ---- */

INLINE void logit_rows(const void *logits, const int64_t *own, float *part, float *chosen, at first,
                       at last, at width, int narrow) {
  for (at r = first; r < last; r++) {
    const void *l = row(logits, r * width, narrow);
    vf highest = all(-INFINITY), total = {0};
    for (at i = 0; i < width; i += LANES) {
      vf x = kept(load(l, i, width - i, narrow), width - i, -INFINITY);
      highest = pick((vi)(x < highest), highest, x); /* what is not a number stays */
    }
    float top = highest[0];
    for (int k = 1; k < LANES; k++) top = highest[k] < top ? top : highest[k];
    for (at i = 0; i < width; i += LANES) {
      total += kept(decay(load(l, i, width - i, narrow) - top), width - i, 0);
    }
    part[r] = top + logf(sum(total));
    chosen[r] = own[r] < 0 ? 0 : load(l, own[r], 1, narrow)[0];
  }
}

/* part [rows], the logarithm of the sum of exponentials, and chosen [rows], the target's logit or 0. */
void krzem_logits(const void *logits, const int64_t *own, float *part, float *chosen, at rows,
                  at width, int narrow, at threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (at t = 0; t < threads; t++) {
    at first = rows * t / threads, last = rows * (t + 1) / threads;
    if (narrow) logit_rows(logits, own, part, chosen, first, last, width, 1);
    else logit_rows(logits, own, part, chosen, first, last, width, 0);
  }
}

INLINE void logit_gradient_rows(void *logits, const int64_t *own, const float *partition,
                                const float *factor, at first, at last, at width, int narrow) {
  for (at r = first; r < last; r++) {
    void *l = (void *)row(logits, r * width, narrow);
    for (at i = 0; i < width; i += LANES) {
      vf x = decay(load(l, i, width - i, narrow) - partition[r]) * factor[r];
      if (own[r] >= i && own[r] < i + LANES) x[own[r] - i] -= 1.0f;
      store(l, i, width - i, x, narrow);
    }
  }
}

/* In place of the logits: e^(logit - partition) times the factor of the row, less one at the target. */
void krzem_logits_gradient(void *logits, const int64_t *own, const float *partition,
                           const float *factor, at rows, at width, int narrow, at threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (at t = 0; t < threads; t++) {
    at first = rows * t / threads, last = rows * (t + 1) / threads;
    if (narrow) logit_gradient_rows(logits, own, partition, factor, first, last, width, 1);
    else logit_gradient_rows(logits, own, partition, factor, first, last, width, 0);
  }
}

/* ---- causal attention in float32 ---- */

/* b [k, n] as panels of COLUMNS, the last one filled up with zeros. */
static void pack(float *to, const float *b, at k_stride, at n_stride, at k, at n) {
  for (at j0 = 0; j0 < n; j0 += COLUMNS, to += k * COLUMNS) {
    at count = least(COLUMNS, n - j0);
    if (n_stride == 1 && count == COLUMNS) {
      for (at p = 0; p < k; p++) memcpy(to + p * COLUMNS, b + p * k_stride + j0, COLUMNS * sizeof *to);
      continue;
    }
    if (count < COLUMNS) memset(to, 0, (size_t)(k * COLUMNS) * sizeof *to);
    for (at j = 0; j < count; j++)
      for (at p = 0; p < k; p++) to[p * COLUMNS + j] = b[p * k_stride + (j0 + j) * n_stride];
  }
}

/* c [rows, count] = a [rows, k] times one panel; element (i, p) of a is at i * a_row + p * a_k. */
INLINE void tile(int rows, const float *a, at a_row, at a_k, const float *panel, at k, float *c,
                 at c_row, at count) {
  vf low[ROWS], high[ROWS];
#pragma GCC unroll 12
  for (int i = 0; i < rows; i++) low[i] = high[i] = (vf){0};
  for (at p = 0; p < k; p++, a += a_k, panel += COLUMNS) {
    vf left = *(const vf *)panel, right = *(const vf *)(panel + LANES);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
      vf x = all(a[i * a_row]);
      low[i] += x * left;
      high[i] += x * right;
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < rows; i++) {
    store(c, i * c_row, count, low[i], 0);
    if (count > LANES) store(c, i * c_row + LANES, count - LANES, high[i], 0);
  }
}

/* c [rows, n] = a [rows, k] times packed b, whose panels are `depth` deep. */
static void multiply(at rows, const float *a, at a_row, at a_k, const float *b, at depth, at k,
                     float *c, at c_row, at n) {
  for (at j = 0; j < n; j += COLUMNS, b += depth * COLUMNS) {
    at done = 0, count = least(COLUMNS, n - j);
    if (rows == ROWS) {
      if (a_k == 1) tile(ROWS, a, a_row, 1, b, k, c + j, c_row, count);
      else tile(ROWS, a, 1, a_k, b, k, c + j, c_row, count);
      continue;
    }
    for (; rows - done >= 4; done += 4)
      tile(4, a + done * a_row, a_row, a_k, b, k, c + done * c_row + j, c_row, count);
    for (; done < rows; done++)
      tile(1, a + done * a_row, a_row, a_k, b, k, c + done * c_row + j, c_row, count);
  }
}

/* Softmax of `count` scores, scaled and with `mask` added; zeros up to `end`. */
static void softmax(float *scores, const float *mask, float scale, at count, at end) {
  vf highest = all(-INFINITY);
  for (at j = 0; j < count; j += LANES) {
    vf x = load(scores, j, count - j, 0) * scale;
    if (mask) x += load(mask, j, count - j, 0);
    store(scores, j, count - j, x, 0);
    x = kept(x, count - j, -INFINITY);
    highest = pick((vi)(x > highest), x, highest);
  }
  float top = highest[0];
  for (int k = 1; k < LANES; k++) top = highest[k] > top ? highest[k] : top;
  vf total = {0};
  for (at j = 0; j < count; j += LANES) {
    vf x = kept(decay(load(scores, j, count - j, 0) - top), count - j, 0);
    store(scores, j, count - j, x, 0);
    total += x;
  }
  float factor = 1.0f / sum(total);
  for (at j = 0; j < count; j += LANES)
    store(scores, j, count - j, load(scores, j, count - j, 0) * factor, 0);
  for (at j = count; j < end; j++) scores[j] = 0;
}

/* The gradient of scaled scores from that of the weights, in its place; zeros up to `end`. */
INLINE void softmax_gradient(float *g, const void *weights, float scale, at count, at end, int narrow) {
  vf along = {0};
  for (at j = 0; j < count; j += LANES)
    along += load(g, j, count - j, 0) * load(weights, j, count - j, narrow);
  float dot = sum(along);
  for (at j = 0; j < count; j += LANES) {
    vf x = load(weights, j, count - j, narrow) * (load(g, j, count - j, 0) - dot) * scale;
    store(g, j, count - j, x, 0);
  }
  for (at j = count; j < end; j++) g[j] = 0;
}

static at panels(at n) { return (n + COLUMNS - 1) / COLUMNS * COLUMNS; }

typedef struct { at batch, head, token; } strides;
INLINE const float *of(const float *x, strides s, at b, at h) { return x + b * s.batch + h * s.head; }

/* Causal attention of each of batch * heads: q, k [length, width], v and out [length, value_width].
 * weights [batch, heads, length, length] are kept for the gradient; what lies behind a block of
 * ROWS is not written.  mask [length, length] of each sequence, or of all (mask_batch 0), is added.
 * `s` are the strides of q, k, v and out.  Returns 0, or 1 where memory is short. */
int krzem_attention(const float *q, const float *k, const float *v, float *out, const strides *s,
                    float *weights, const float *mask, at mask_batch, at batch, at heads, at length,
                    at width, at value_width, float scale, at threads) {
  strides qs = s[0], ks = s[1], vs = s[2], os = s[3];
  int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
  for (at n = 0; n < batch * heads; n++) {
    at b = n / heads, h = n % heads;
    const float *own = of(q, qs, b, h);
    float *keys = malloc((size_t)(panels(length) * width + length * panels(value_width)) * sizeof *keys);
    if (!keys) { failed = 1; continue; }
    float *values = keys + panels(length) * width, *w = weights + n * length * length;
    pack(keys, of(k, ks, b, h), 1, ks.token, width, length);
    pack(values, of(v, vs, b, h), vs.token, 1, length, value_width);
    for (at i = 0; i < length; i += ROWS) {
      at rows = least(ROWS, length - i), end = least(i + ROWS, length);
      multiply(rows, own + i * qs.token, qs.token, 1, keys, width, width, w + i * length, length, end);
      for (at r = i; r < i + rows; r++)
        softmax(w + r * length, mask ? mask + b * mask_batch + r * length : NULL, scale, r + 1, end);
      multiply(rows, w + i * length, length, 1, values, length, end,
               (float *)of(out, os, b, h) + i * os.token, os.token, value_width);
    }
    free(keys);
  }
  return failed;
}

/* Gradients of q, k and v from that of out, g, and the weights kept; `s` are the strides in this
 * order. */
int krzem_attention_gradient(const float *g, const float *q, const float *k, const float *v, float *dq,
                             float *dk, float *dv, const strides *s, const float *weights, at batch,
                             at heads, at length, at width, at value_width, float scale, at threads) {
  strides gs = s[0], qs = s[1], ks = s[2], vs = s[3], dqs = s[4], dks = s[5], dvs = s[6];
  int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
  for (at n = 0; n < batch * heads; n++) {
    at b = n / heads, h = n % heads, wide = length * panels(width), narrow = length * panels(value_width);
    const float *go = of(g, gs, b, h), *w = weights + n * length * length;
    float *values = malloc((size_t)(panels(length) * value_width + 2 * wide + narrow + length * length) * sizeof *values);
    if (!values) { failed = 1; continue; }
    float *keys = values + panels(length) * value_width, *queries = keys + wide;
    float *outs = queries + wide, *scores = outs + narrow;
    pack(values, of(v, vs, b, h), 1, vs.token, value_width, length);
    pack(keys, of(k, ks, b, h), ks.token, 1, length, width);
    pack(queries, of(q, qs, b, h), qs.token, 1, length, width);
    pack(outs, go, gs.token, 1, length, value_width);
    for (at i = 0; i < length; i += ROWS) {
      at rows = least(ROWS, length - i), end = least(i + ROWS, length);
      multiply(rows, go + i * gs.token, gs.token, 1, values, value_width, value_width, scores + i * length, length, end);
      for (at r = i; r < i + rows; r++)
        softmax_gradient(scores + r * length, w + r * length, scale, r + 1, end, 0);
      multiply(rows, scores + i * length, length, 1, keys, length, end,
               (float *)of(dq, dqs, b, h) + i * dqs.token, dqs.token, width);
    }
    for (at j = 0; j < length; j += ROWS) {
      at rows = least(ROWS, length - j), from = j * length + j, left = length - j;
      multiply(rows, scores + from, 1, length, queries + j * COLUMNS, length, left,
               (float *)of(dk, dks, b, h) + j * dks.token, dks.token, width);
      multiply(rows, w + from, 1, length, outs + j * COLUMNS, length, left,
               (float *)of(dv, dvs, b, h) + j * dvs.token, dvs.token, value_width);
    }
    free(values);
  }
  return failed;
}

/* ---- causal attention in bfloat16, where the processor multiplies pairs of it ---- */

/* Whether the functions below compute. */
int krzem_pairs(void) {
#if defined(__AVX512BF16__)
  return 1;
#else
  return 0;
#endif
}

#if defined(__AVX512BF16__)

typedef uint16_t half;
static at even(at n) { return n + (n & 1); }
INLINE const half *half_of(const half *x, strides s, at b, at h) { return x + b * s.batch + h * s.head; }

/* b [k, n] as panels of pairs along k, filled up with zeros; b's rows along k are contiguous. */
static void pack_rows(uint32_t *to, const half *b, at n_stride, at k, at n) {
  for (at j0 = 0; j0 < n; j0 += COLUMNS, to += k / 2 * COLUMNS) {
    at count = least(COLUMNS, n - j0);
    if (count < COLUMNS) memset(to, 0, (size_t)(k / 2 * COLUMNS) * sizeof *to);
    for (at j = 0; j < count; j++)
      for (at p = 0; p < k / 2; p++) memcpy(to + p * COLUMNS + j, b + (j0 + j) * n_stride + 2 * p, sizeof *to);
  }
}

/* The same where rows along n are contiguous; k may be odd. */
static void pack_columns(uint32_t *to, const half *b, at k_stride, at k, at n) {
  for (at j0 = 0; j0 < n; j0 += COLUMNS) {
    at count = least(COLUMNS, n - j0);
    for (at p = 0; p < k; p += 2, to += COLUMNS) {
      const half *low = b + p * k_stride + j0, *high = p + 1 < k ? low + k_stride : NULL;
      for (at j = 0; j < count; j++) to[j] = low[j] | (high ? (uint32_t)high[j] << 16 : 0);
      for (at j = count; j < COLUMNS; j++) to[j] = 0;
    }
  }
}

/* c [rows, count] = a times one panel; the pair p of row i of a is at i * a_row + p * a_pair. */
INLINE void pair_tile(int rows, const half *a, at a_row, at a_pair, const uint32_t *panel, at pairs,
                      void *c, at c_row, at c_at, at count, int narrow) {
  __m512 low[ROWS], high[ROWS];
#pragma GCC unroll 12
  for (int i = 0; i < rows; i++) low[i] = high[i] = _mm512_setzero_ps();
  for (at p = 0; p < pairs; p++, a += a_pair, panel += COLUMNS) {
    __m512bh left = (__m512bh)_mm512_loadu_si512(panel);
    __m512bh right = (__m512bh)_mm512_loadu_si512(panel + LANES);
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
      int32_t pair;
      memcpy(&pair, a + i * a_row, sizeof pair);
      __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
      low[i] = _mm512_dpbf16_ps(low[i], x, left);
      high[i] = _mm512_dpbf16_ps(high[i], x, right);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < rows; i++) {
    store(c, i * c_row + c_at, count, (vf)low[i], narrow);
    if (count > LANES) store(c, i * c_row + c_at + LANES, count - LANES, (vf)high[i], narrow);
  }
}

/* c [rows, n] = a times packed b, whose panels are `depth` pairs deep. */
INLINE void multiply_pairs(at rows, const half *a, at a_row, at a_pair, const uint32_t *b, at depth,
                           at pairs, void *c, at c_row, at n, int narrow) {
  for (at j = 0; j < n; j += COLUMNS, b += depth * COLUMNS) {
    at done = 0, count = least(COLUMNS, n - j);
    if (rows == ROWS) {
      pair_tile(ROWS, a, a_row, a_pair, b, pairs, c, c_row, j, count, narrow);
      continue;
    }
    for (; rows - done >= 4; done += 4)
      pair_tile(4, a + done * a_row, a_row, a_pair, b, pairs, c, c_row, done * c_row + j, count, narrow);
    for (; done < rows; done++)
      pair_tile(1, a + done * a_row, a_row, a_pair, b, pairs, c, c_row, done * c_row + j, count, narrow);
  }
}

/* Two rows, or one and zeros, as pairs. */
static void interleave(uint32_t *to, const half *first, const half *second, at count) {
  for (at j = 0; j < count; j++) to[j] = first[j] | (second ? (uint32_t)second[j] << 16 : 0);
}

static void narrowed(half *to, const float *from, at count) {
  for (at j = 0; j < count; j += LANES) store(to, j, count - j, load(from, j, count - j, 0), 1);
}

/* As krzem_attention; widths are even, and weights [batch, heads, length, even(length)]. */
int krzem_pairs_attention(const half *q, const half *k, const half *v, half *out, const strides *s,
                          half *weights, const float *mask, at mask_batch, at batch, at heads,
                          at length, at width, at value_width, float scale, at threads) {
  strides qs = s[0], ks = s[1], vs = s[2], os = s[3];
  int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
  for (at n = 0; n < batch * heads; n++) {
    at b = n / heads, h = n % heads, wide = even(length), key_size = panels(length) * width / 2;
    const half *own = half_of(q, qs, b, h);
    uint32_t *keys = malloc((size_t)(key_size + wide / 2 * panels(value_width) + ROWS * length) * sizeof *keys);
    if (!keys) { failed = 1; continue; }
    uint32_t *values = keys + key_size;
    float *scores = (float *)(values + wide / 2 * panels(value_width));
    half *w = weights + n * length * wide;
    pack_rows(keys, half_of(k, ks, b, h), ks.token, width, length);
    pack_columns(values, half_of(v, vs, b, h), vs.token, length, value_width);
    for (at i = 0; i < length; i += ROWS) {
      at rows = least(ROWS, length - i), end = least(i + ROWS, length);
      multiply_pairs(rows, own + i * qs.token, qs.token, 2, keys, width / 2, width / 2, scores, length, end, 0);
      for (at r = 0; r < rows; r++) {
        half *to = w + (i + r) * wide;
        softmax(scores + r * length, mask ? mask + b * mask_batch + (i + r) * length : NULL, scale, i + r + 1, end);
        narrowed(to, scores + r * length, end);
        if (end < even(end)) to[end] = 0;
      }
      multiply_pairs(rows, w + i * wide, wide, 2, values, wide / 2, even(end) / 2,
                     (half *)half_of(out, os, b, h) + i * os.token, os.token, value_width, 1);
    }
    free(keys);
  }
  return failed;
}

/* As krzem_attention_gradient. */
int krzem_pairs_attention_gradient(const half *g, const half *q, const half *k, const half *v, half *dq,
                                   half *dk, half *dv, const strides *s, const half *weights, at batch,
                                   at heads, at length, at width, at value_width, float scale, at threads) {
  strides gs = s[0], qs = s[1], ks = s[2], vs = s[3], dqs = s[4], dks = s[5], dvs = s[6];
  int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : failed)
  for (at n = 0; n < batch * heads; n++) {
    at b = n / heads, h = n % heads, wide = even(length), deep = wide / 2;
    at value_size = panels(length) * value_width / 2, key_size = deep * panels(width);
    at out_size = deep * panels(value_width), square = deep * length;
    const half *go = half_of(g, gs, b, h), *w = weights + n * length * wide;
    at sizes = value_size + 2 * key_size + out_size + 2 * square + ROWS * (length + deep);
    uint32_t *values = malloc((size_t)sizes * sizeof *values);
    if (!values) { failed = 1; continue; }
    uint32_t *keys = values + value_size, *queries = keys + key_size, *outs = queries + key_size;
    uint32_t *score_pairs = outs + out_size, *weight_pairs = score_pairs + square;
    float *scores = (float *)(weight_pairs + square);
    half *block = (half *)(scores + ROWS * length);
    pack_rows(values, half_of(v, vs, b, h), vs.token, value_width, length);
    pack_columns(keys, half_of(k, ks, b, h), ks.token, length, width);
    pack_columns(queries, half_of(q, qs, b, h), qs.token, length, width);
    pack_columns(outs, go, gs.token, length, value_width);
    for (at i = 0; i < length; i += ROWS) {
      at rows = least(ROWS, length - i), end = least(i + ROWS, length);
      multiply_pairs(rows, go + i * gs.token, gs.token, 2, values, value_width / 2, value_width / 2, scores, length, end, 0);
      for (at r = 0; r < rows; r++) {
        softmax_gradient(scores + r * length, w + (i + r) * wide, scale, i + r + 1, end, 1);
        narrowed(block + r * wide, scores + r * length, end);
        if (end < even(end)) block[r * wide + end] = 0;
      }
      for (at r = 0; r < rows; r += 2) {
        int more = r + 1 < rows;
        const half *own = w + (i + r) * wide;
        interleave(score_pairs + (i + r) / 2 * length, block + r * wide, more ? block + (r + 1) * wide : NULL, end);
        interleave(weight_pairs + (i + r) / 2 * length, own, more ? own + wide : NULL, end);
      }
      multiply_pairs(rows, block, wide, 2, keys, deep, even(end) / 2,
                     (half *)half_of(dq, dqs, b, h) + i * dqs.token, dqs.token, width, 1);
    }
    for (at j = 0; j < length; j += ROWS) {
      at rows = least(ROWS, length - j), from = j / 2 * length + j, left = deep - j / 2;
      multiply_pairs(rows, (half *)(score_pairs + from), 2, 2 * length, queries + j / 2 * COLUMNS, deep, left,
                     (half *)half_of(dk, dks, b, h) + j * dks.token, dks.token, width, 1);
      multiply_pairs(rows, (half *)(weight_pairs + from), 2, 2 * length, outs + j / 2 * COLUMNS, deep, left,
                     (half *)half_of(dv, dvs, b, h) + j * dvs.token, dvs.token, value_width, 1);
    }
    free(values);
  }
  return failed;
}

#endif
