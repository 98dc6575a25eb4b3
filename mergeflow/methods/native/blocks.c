/* The hot loops of CPU merges: the same numbers as the torch kernels, bit for bit, in one pass over each block.

   A pass over a block is a list of steps (`struct step`), run tile by tile, so that what one step makes is still in the
   processor's first cache when the next one reads it. Inputs that lie plainly in files are read here too, a part of the
   block at a time, so that they are still in the second cache when they are used. Every operation is rounded by itself: this file is compiled
   with -ffp-contract=off and without -ffast-math, and each loop does, element by element, what the kernel of the same
   name in mergeflow/methods/kernels does.

   Nothing here allocates, keeps state or checks its arguments: mergeflow/execute/native.py decides, this computes. */

#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#define INTERFACE 5 /* library.py */
#define TILE 1024
#define MOST_TILE 32768 /* where an operation needs whole rows, a tile is a row */
#define MOST_OPERANDS 64

/* One binary for every x86-64 processor: the loader picks the version of each loop. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HOT __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define HOT
#endif
#define EXPORT __attribute__((visibility("default")))

enum dtype { FLOAT32, BFLOAT16, FLOAT16 };
enum operation {
    WIDEN,
    CAST,
    SUBTRACT,
    ADD,
    WEIGHTED_SUM,
    TRIM,
    CONSENSUS,
    TRIM_OUTLIERS,
    DROP,
    MAGPRUNE,
    VARIANCE,
    SELECT,
    SCE,
    MAGNITUDES,
};

/* Where an operand lies. A tile's own buffer is the same for every tile; a part's buffer is `near` bytes further for
   each element within the part, and a block's also `far` bytes for each element before the part. */
struct operand {
    char *at;
    int32_t near, far;
};

/* A plain input: its bytes lie in one piece, from `offset` of an open file on. */
struct read {
    struct operand buffer;
    int64_t offset;
    int32_t descriptor, itemsize;
};

/* The dot products of `count` values, summed over lanes. */
struct products {
    double *totals;
    int64_t width;
    int32_t count;
    const struct operand *inputs;
    const int32_t *dtypes;
};

struct step {
    int32_t operation;
    int32_t dtype; /* of the narrow side of WIDEN and CAST */
    int32_t count; /* of inputs */
    int32_t flag;
    int64_t index;
    uint64_t words[2];
    struct operand out;
    const struct operand *inputs;
    const float *numbers;
};

static inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

HOT static void widen_bfloat16(const uint16_t *restrict in, float *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = float_of((uint32_t)in[i] << 16);
}

HOT static void cast_bfloat16(const float *restrict in, uint16_t *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = bits_of(in[i]);
        uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* ties to even */
        out[i] = (bits & 0x7fffffff) > 0x7f800000 ? 0xffff : (uint16_t)nearest; /* torch's NaN */
    }
}

/* A float16 that is no subnormal, infinity or NaN only moves its exponent; the others are scaled, exactly. */
HOT static void widen_float16(const uint16_t *restrict in, float *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = ((uint32_t)in[i] & 0x7fff) << 13;
        float value = float_of(bits) * 0x1p112f;
        uint32_t magnitude = bits >= 0x0f800000 ? bits | 0x7f800000 : bits_of(value);
        magnitude |= magnitude > 0x7f800000 ? 0x00400000 : 0; /* a NaN becomes a quiet one */
        out[i] = float_of(magnitude | ((uint32_t)in[i] & 0x8000) << 16);
    }
}

HOT static void cast_float16(const float *restrict in, uint16_t *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = bits_of(in[i]), magnitude = bits & 0x7fffffff;
        uint32_t nearest = (magnitude - 0x38000000 + 0x0fff + ((magnitude >> 13) & 1)) >> 13;
        uint32_t small = bits_of(float_of(magnitude) + 0.5f) & 0x3fff; /* a subnormal: rounded by the addition */
        uint32_t result = magnitude < 0x38800000 ? small : nearest;
        result = magnitude >= 0x477ff000 ? 0x7c00 : result;
        result = magnitude > 0x7f800000 ? 0x7e00 | ((magnitude >> 13) & 0x3ff) : result;
        out[i] = (uint16_t)(result | (bits & 0x80000000) >> 16);
    }
}

HOT static void subtract(const float *restrict a, const float *restrict b, float *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = a[i] - b[i];
}

HOT static void add(const float *restrict a, const float *restrict b, float *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = a[i] + b[i];
}

HOT static void scale(const float *restrict a, float factor, float *restrict out, int64_t n)
{
    if (factor == 1.0f) { /* a copy: it keeps a NaN's bits */
        memcpy(out, a, (size_t)n * 4);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        out[i] = factor * a[i];
}

HOT static void add_scaled(const float *restrict a, float factor, float *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = out[i] + factor * a[i];
}

HOT static void weighted_pair(const float *restrict a, float f, const float *restrict b, float g, float *restrict out,
                              int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = f * a[i] + g * b[i];
}

static void weighted_sum(const float *const *in, const float *factors, int count, float *out, int64_t n)
{
    int next = 1;
    if (count > 1) {
        weighted_pair(in[0], factors[0], in[1], factors[1], out, n);
        next = 2;
    } else {
        scale(in[0], factors[0], out, n);
    }
    for (; next < count; next++)
        add_scaled(in[next], factors[next], out, n);
}

HOT static void keep_above(const float *restrict in, float bound, float *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = in[i] >= -bound && in[i] <= bound ? 0.0f : in[i];
}

/* numbers: the bound up to the element `cut` (and with it), the bound after it. */
static void trim(const float *numbers, int64_t cut, const float *in, float *out, int64_t start, int64_t n)
{
    int64_t before = cut + 1 - start;
    before = before < 0 ? 0 : before > n ? n : before;
    keep_above(in, numbers[0], out, before);
    keep_above(in + before, numbers[1], out + before, n - before);
}

/* numbers and index: of the entries kept; numbers + 2 and words[0]: of the outliers among them. */
static void trim_outliers(const struct step *step, const float *in, float *out, int64_t start, int64_t n)
{
    float kept[MOST_TILE], largest[MOST_TILE];
    trim(step->numbers, step->index, in, kept, start, n);
    trim(step->numbers + 2, (int64_t)step->words[0], in, largest, start, n);
    subtract(kept, largest, out, n);
}

HOT static void times_sign(const float *restrict signs, const float *restrict in, float *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)((signs[i] > 0.0f) - (signs[i] < 0.0f)) * in[i];
}

static void select_by(const struct step *step, const float *in, const float *variance, float *out, int64_t start,
                      int64_t n)
{
    float largest[MOST_TILE];
    trim(step->numbers, step->index, variance, largest, start, n);
    times_sign(largest, in, out, n);
}

/* Word j of a stream: kernels/counter_random.py. */
static inline uint64_t random_word(uint64_t start, uint64_t step, uint64_t j)
{
    uint64_t z = start + (j + 1) * step;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* The random integers of the elements [start, start + n). */
HOT static void random_integers(const uint64_t *stream, int64_t start, int32_t *restrict out, int64_t n)
{
    int64_t i = 0;
    if (start % 2 && n)
        out[i++] = (int32_t)(random_word(stream[0], stream[1], (uint64_t)start / 2) >> 32);
    uint64_t first = (uint64_t)(start + i) / 2;
    int64_t pairs = (n - i) / 2;
    for (int64_t j = 0; j < pairs; j++) {
        uint64_t word = random_word(stream[0], stream[1], first + (uint64_t)j);
        out[i + 2 * j] = (int32_t)word;
        out[i + 2 * j + 1] = (int32_t)(word >> 32);
    }
    if ((n - i) % 2)
        out[n - 1] = (int32_t)random_word(stream[0], stream[1], first + (uint64_t)pairs);
}

HOT static void keep_up_to(const int32_t *restrict random, int32_t bound, const float *restrict in,
                           float *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)(random[i] <= bound) * in[i];
}

/* words: the stream; index: the largest integer that is kept. */
static void drop(const struct step *step, const float *in, float *out, int64_t start, int64_t n)
{
    int32_t random[MOST_TILE];
    random_integers(step->words, start, random, n);
    keep_up_to(random, (int32_t)step->index, in, out, n);
}

#define BUCKET_SHIFT 19 /* of magnitudes: an octave has sixteen */
#define BUCKETS 256     /* downwards from the largest; the last has the zeros, the one before it all that is small */

/* The entries of a row, sorted into buckets of falling magnitude; within one, in the order of the row. */
struct row {
    uint32_t magnitude[MOST_TILE]; /* in the order of the row */
    uint8_t bucket[MOST_TILE];
    uint32_t sorted[MOST_TILE]; /* by bucket */
    int32_t place[MOST_TILE];   /* of an entry in `sorted` */
    int32_t first[BUCKETS + 1];
};

HOT static void magnitudes_of(const float *restrict in, uint32_t *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = bits_of(in[i]) & 0x7fffffff;
}

HOT static int32_t largest_of(const uint32_t *restrict in, int64_t n)
{
    int32_t largest = 0;
    for (int64_t i = 0; i < n; i++)
        largest = (int32_t)in[i] > largest ? (int32_t)in[i] : largest;
    return largest;
}

HOT static void buckets_of(const uint32_t *restrict in, int32_t top, uint8_t *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        int32_t below = top - (int32_t)(in[i] >> BUCKET_SHIFT);
        below = below < BUCKETS - 2 ? below : BUCKETS - 2;
        out[i] = (uint8_t)(in[i] == 0 ? BUCKETS - 1 : below);
    }
}

static void sort_into_buckets(struct row *row, const float *in, int64_t n)
{
    int32_t counts[4][BUCKETS] = {{0}}, next[BUCKETS], place = 0;
    magnitudes_of(in, row->magnitude, n);
    buckets_of(row->magnitude, largest_of(row->magnitude, n) >> BUCKET_SHIFT, row->bucket, n);
    int64_t fours = n / 4 * 4; /* four counters, so that equal neighbours do not wait for each other */
    for (int64_t i = 0; i < fours; i += 4)
        for (int k = 0; k < 4; k++)
            counts[k][row->bucket[i + k]]++;
    for (int64_t i = fours; i < n; i++)
        counts[0][row->bucket[i]]++;
    for (int bucket = 0; bucket < BUCKETS; bucket++) {
        row->first[bucket] = next[bucket] = place;
        place += counts[0][bucket] + counts[1][bucket] + counts[2][bucket] + counts[3][bucket];
    }
    row->first[BUCKETS] = place;
    for (int64_t i = 0; i < n; i++) {
        int32_t at = next[row->bucket[i]]++;
        row->sorted[at] = row->magnitude[i];
        row->place[i] = at;
    }
}

/* Whether all entries of a bucket are equal: then their order in it is their order. */
HOT static int is_uniform(const struct row *row, int bucket)
{
    uint32_t differ = 0, one = row->sorted[row->first[bucket]];
    for (int32_t at = row->first[bucket]; at < row->first[bucket + 1]; at++)
        differ |= row->sorted[at] ^ one;
    return differ == 0;
}

/* The place of entry i in falling order of magnitude; of equal entries, the first one comes first. */
HOT static int32_t exact_place(const struct row *row, int64_t i)
{
    int32_t first = row->first[row->bucket[i]], end = row->first[row->bucket[i] + 1], own = row->place[i];
    uint32_t magnitude = row->magnitude[i];
    int32_t before = 0;
    for (int32_t at = first; at < own; at++)
        before += row->sorted[at] >= magnitude;
    for (int32_t at = own + 1; at < end; at++)
        before += row->sorted[at] > magnitude;
    return first + before;
}

/* One row (kernels/magprune.py). words: the stream; bounds: the largest integer that is kept, by the entry's place in
   falling order of magnitude. Nearly always all places of a bucket agree on an entry, and its own need not be found. */
static void magprune(const uint64_t *stream, const int32_t *bounds, const float *in, float *out, int64_t start,
                     int64_t n)
{
    struct row row;
    int32_t random[MOST_TILE], open[MOST_TILE], always[BUCKETS], ever[BUCKETS];
    random_integers(stream, start, random, n);
    sort_into_buckets(&row, in, n);
    for (int bucket = 0; bucket < BUCKETS; bucket++) {
        int32_t first = row.first[bucket], end = row.first[bucket + 1];
        always[bucket] = end > first ? bounds[end - 1] : 0;
        ever[bucket] = end > first ? bounds[first] : 0;
    }
    int64_t opened = 0;
    for (int64_t i = 0; i < n; i++) {
        int keep = random[i] <= always[row.bucket[i]];
        open[opened] = (int32_t)i;
        opened += !keep & (random[i] <= ever[row.bucket[i]]);
        out[i] = (float)keep * in[i];
    }
    int8_t uniform[BUCKETS];
    memset(uniform, -1, BUCKETS);
    for (int64_t k = 0; k < opened; k++) {
        int32_t i = open[k];
        int bucket = row.bucket[i];
        if (uniform[bucket] < 0)
            uniform[bucket] = (int8_t)is_uniform(&row, bucket);
        int32_t place = uniform[bucket] ? row.place[i] : exact_place(&row, i);
        out[i] = (float)(random[i] <= bounds[place]) * in[i];
    }
}

HOT static void variance(const float *const *in, int count, float *restrict out, int64_t n)
{
    double mean[MOST_TILE], total[MOST_TILE];
    memset(mean, 0, (size_t)n * 8);
    memset(total, 0, (size_t)n * 8);
    for (int k = 0; k < count; k++)
        for (int64_t i = 0; i < n; i++)
            mean[i] += in[k][i];
    for (int64_t i = 0; i < n; i++)
        mean[i] /= count;
    for (int k = 0; k < count; k++)
        for (int64_t i = 0; i < n; i++) {
            double off = in[k][i] - mean[i];
            total[i] += off * off;
        }
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)(total[i] / count);
}

HOT static void flip(const float *restrict in, const uint32_t *restrict signs, float *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = float_of(bits_of(in[i]) ^ signs[i]);
}

HOT static void sign_bits(const float *restrict in, uint32_t *restrict signs, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        signs[i] = bits_of(in[i]) & 0x80000000;
}

/* total += the vote where it has the elected sign; weight += factor there. */
HOT static void join(const float *restrict vote, const uint32_t *restrict signs, float factor, int first,
                     float *restrict total, float *restrict weight, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float flipped = float_of(bits_of(vote[i]) ^ signs[i]);
        float agreeing = flipped < 0.0f ? 0.0f : flipped;
        float mask = (float)((agreeing > 0.0f) - (agreeing < 0.0f));
        total[i] = first ? agreeing : total[i] + agreeing;
        weight[i] = first ? factor * mask : weight[i] + factor * mask;
    }
}

HOT static void divide(float *restrict total, const float *restrict weight, float least, int64_t n)
{
    if (least > 0.0f)
        for (int64_t i = 0; i < n; i++)
            total[i] = total[i] / (weight[i] < least ? least : weight[i]);
    else
        for (int64_t i = 0; i < n; i++)
            total[i] = total[i] / (weight[i] + (weight[i] == 0.0f ? 1.0f : 0.0f));
}

/* numbers: a weight per model, then lambda; flag: whether to divide by the weights of those that agree. */
static void consensus(const struct step *step, const float *const *in, float *out, int64_t n)
{
    int count = step->count;
    const float *weights = step->numbers;
    uint32_t signs[MOST_TILE];
    float vote[MOST_TILE], weight[MOST_TILE], least = weights[0], lambda = weights[count];

    weighted_sum(in, weights, count, vote, n);
    sign_bits(vote, signs, n);
    for (int k = 0; k < count; k++) {
        least = weights[k] < least ? weights[k] : least;
        scale(in[k], weights[k], vote, n);
        join(vote, signs, weights[k], k == 0, out, weight, n);
    }
    if (step->flag)
        divide(out, weight, least, n);
    memcpy(vote, out, (size_t)n * 4);
    flip(vote, signs, out, n);
    if (lambda != 1.0f) {
        memcpy(vote, out, (size_t)n * 4);
        scale(vote, lambda, out, n);
    }
}

HOT static void add_to(const float *restrict in, float *restrict total, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        total[i] = total[i] + in[i];
}

HOT static void join_weighed(const float *restrict in, const uint32_t *restrict signs, float factor, int first,
                             float *restrict total, float *restrict weight, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float flipped = float_of(bits_of(in[i]) ^ signs[i]);
        float agreeing = flipped < 0.0f ? 0.0f : flipped;
        float mask = (float)((agreeing > 0.0f) - (agreeing < 0.0f));
        total[i] = (first ? 0.0f : total[i]) + factor * agreeing;
        weight[i] = first ? factor * mask : weight[i] + factor * mask;
    }
}

/* numbers: a weight per model, then the least that is divided by. */
static void sce(const struct step *step, const float *const *in, float *out, int64_t n)
{
    uint32_t signs[MOST_TILE];
    float total[MOST_TILE], weight[MOST_TILE];
    memcpy(total, in[0], (size_t)n * 4);
    for (int k = 1; k < step->count; k++)
        add_to(in[k], total, n);
    sign_bits(total, signs, n);
    for (int k = 0; k < step->count; k++)
        join_weighed(in[k], signs, step->numbers[k], k == 0, total, weight, n);
    divide(total, weight, step->numbers[step->count], n);
    flip(total, signs, out, n);
}

EXPORT int mergeflow_interface(void)
{
    return INTERFACE;
}

/* Index of the first infinity or NaN of a block; -1 when there is none. */
HOT static int has_non_finite_16(const uint16_t *restrict in, uint16_t exponent, int64_t n)
{
    int found = 0;
    for (int64_t i = 0; i < n; i++)
        found |= (in[i] & exponent) == exponent;
    return found;
}

HOT static int has_non_finite_32(const uint32_t *restrict in, int64_t n)
{
    int found = 0;
    for (int64_t i = 0; i < n; i++)
        found |= (in[i] & 0x7f800000) == 0x7f800000;
    return found;
}

EXPORT int64_t mergeflow_first_non_finite(const void *block, int32_t dtype, int64_t elements)
{
    uint16_t exponent = dtype == BFLOAT16 ? 0x7f80 : 0x7c00;
    for (int64_t tile = 0; tile < elements; tile += TILE) {
        int64_t n = elements - tile < TILE ? elements - tile : TILE;
        const uint16_t *half = (const uint16_t *)block + tile;
        const uint32_t *full = (const uint32_t *)block + tile;
        if (dtype == FLOAT32 ? !has_non_finite_32(full, n) : !has_non_finite_16(half, exponent, n))
            continue;
        for (int64_t i = 0; i < n; i++)
            if (dtype == FLOAT32 ? (full[i] & 0x7f800000) == 0x7f800000 : (half[i] & exponent) == exponent)
                return tile + i;
    }
    return -1;
}

/* totals[lane] += a * b, the product exact in float64 (kernels/sums.py). */
HOT static void add_products(const double *restrict a, const double *restrict b, double *restrict total, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        total[i] += a[i] * b[i];
}

#define ADD_PAIR(a, b)                                                                                                 \
    do {                                                                                                               \
        double left = (a), right = (b);                                                                                \
        aa += left * left;                                                                                             \
        ab += left * right;                                                                                            \
        bb += right * right;                                                                                           \
    } while (0)

/* The products of two values, for one row of lanes or for two that lie `row` elements apart. */
#define PAIR_PRODUCTS(name, type, number)                                                                              \
    HOT static void name(const type *restrict a, const type *restrict b, int64_t row, double *restrict totals,         \
                         int64_t width, int64_t n)                                                                     \
    {                                                                                                                  \
        double *restrict total_aa = totals, *restrict total_ab = totals + width, *restrict total_bb = totals + 2 * width; \
        if (row == 0)                                                                                                  \
            for (int64_t i = 0; i < n; i++) {                                                                          \
                double aa = total_aa[i], ab = total_ab[i], bb = total_bb[i];                                           \
                ADD_PAIR(number(a[i]), number(b[i]));                                                                  \
                total_aa[i] = aa, total_ab[i] = ab, total_bb[i] = bb;                                                  \
            }                                                                                                          \
        else                                                                                                           \
            for (int64_t i = 0; i < n; i++) {                                                                          \
                double aa = total_aa[i], ab = total_ab[i], bb = total_bb[i];                                           \
                ADD_PAIR(number(a[i]), number(b[i]));                                                                  \
                ADD_PAIR(number(a[i + row]), number(b[i + row]));                                                      \
                total_aa[i] = aa, total_ab[i] = ab, total_bb[i] = bb;                                                  \
            }                                                                                                          \
    }

#define ADD_TRIPLE(x, y, z)                                                                                            \
    do {                                                                                                               \
        double first = (x), second = (y), third = (z);                                                                 \
        t0 += first * first;                                                                                           \
        t1 += first * second;                                                                                          \
        t2 += first * third;                                                                                           \
        t3 += second * second;                                                                                         \
        t4 += second * third;                                                                                          \
        t5 += third * third;                                                                                           \
    } while (0)

/* The same of three values. */
#define TRIPLE_PRODUCTS(name, type, number)                                                                            \
    HOT static void name(const type *restrict a, const type *restrict b, const type *restrict c, int64_t row,          \
                         double *restrict u0, int64_t width, int64_t n)                                                \
    {                                                                                                                  \
        double *restrict u1 = u0 + width, *restrict u2 = u1 + width, *restrict u3 = u2 + width;                        \
        double *restrict u4 = u3 + width, *restrict u5 = u4 + width;                                                   \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            double t0 = u0[i], t1 = u1[i], t2 = u2[i], t3 = u3[i], t4 = u4[i], t5 = u5[i];                             \
            ADD_TRIPLE(number(a[i]), number(b[i]), number(c[i]));                                                      \
            if (row)                                                                                                   \
                ADD_TRIPLE(number(a[i + row]), number(b[i + row]), number(c[i + row]));                                \
            u0[i] = t0, u1[i] = t1, u2[i] = t2, u3[i] = t3, u4[i] = t4, u5[i] = t5;                                    \
        }                                                                                                              \
    }

#define AS_IT_IS(value) (value)
#define FROM_BFLOAT16(value) float_of((uint32_t)(value) << 16)

PAIR_PRODUCTS(add_pair_products, float, AS_IT_IS)
PAIR_PRODUCTS(add_pair_products_bfloat16, uint16_t, FROM_BFLOAT16)
TRIPLE_PRODUCTS(add_triple_products, float, AS_IT_IS)
TRIPLE_PRODUCTS(add_triple_products_bfloat16, uint16_t, FROM_BFLOAT16)

HOT static void widen_double(const float *restrict in, double *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = in[i];
}

#define LANES 65536 /* kernels/lanes.py */
#define LANE_TILE 512
#define MOST_GRAM 16

/* float32 numbers as they are, others in the buffer. */
static const float *widened(const void *block, int32_t dtype, int64_t from, float *buffer, int64_t n)
{
    if (dtype == FLOAT32)
        return (const float *)block + from;
    if (dtype == BFLOAT16)
        widen_bfloat16((const uint16_t *)block + from, buffer, n);
    else
        widen_float16((const uint16_t *)block + from, buffer, n);
    return buffer;
}

EXPORT void mergeflow_widen(const void *block, int32_t dtype, float *out, int64_t elements)
{
    const float *in = widened(block, dtype, 0, out, elements);
    if (in != out)
        memcpy(out, in, (size_t)elements * 4);
}

static void add_all_products(const float *const *in, int32_t count, double *total, int64_t width, int64_t n)
{
    double wide[MOST_GRAM][LANE_TILE];
    for (int k = 0; k < count; k++)
        widen_double(in[k], wide[k], n);
    for (int i = 0; i < count; i++)
        for (int j = i; j < count; j++, total += width)
            add_products(wide[i], wide[j], total, n);
}

/* Lanes of one row, or of two that lie `second` elements apart, of two or three values from element `at` on. */
static void add_rows(double *totals, const char *const *blocks, int32_t count, int32_t dtype, int64_t at,
                     int64_t second, int64_t width, int64_t n)
{
    const uint16_t *half[3] = {0};
    const float *full[3] = {0};
    for (int k = 0; k < count; k++) {
        half[k] = (const uint16_t *)blocks[k] + at;
        full[k] = (const float *)blocks[k] + at;
    }
    if (dtype == BFLOAT16 && count == 2)
        add_pair_products_bfloat16(half[0], half[1], second, totals, width, n);
    else if (dtype == BFLOAT16)
        add_triple_products_bfloat16(half[0], half[1], half[2], second, totals, width, n);
    else if (count == 2)
        add_pair_products(full[0], full[1], second, totals, width, n);
    else
        add_triple_products(full[0], full[1], full[2], second, totals, width, n);
}

/* The products of two or three values of one dtype, two rows of lanes at a time where there are two. */
static void add_few_products(double *totals, const char *const *blocks, int32_t count, int32_t dtype, int64_t width,
                             int64_t elements)
{
    for (int64_t at = 0; at < elements; at += 2 * width) {
        int64_t rest = elements - at, first = rest < width ? rest : width;
        int64_t both = rest - first < first ? rest - first : first; /* lanes that have an element in the second row */
        add_rows(totals, blocks, count, dtype, at, width, width, both);
        add_rows(totals + both, blocks, count, dtype, at + both, 0, width, first - both);
    }
}

static int is_of_one_dtype(const struct products *sums)
{
    for (int k = 1; k < sums->count; k++)
        if (sums->dtypes[k] != sums->dtypes[0])
            return 0;
    return sums->dtypes[0] != FLOAT16;
}

HOT static void add_to_lanes(const float *restrict in, double *restrict total, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        total[i] += fabs((double)in[i]);
}

/* The magnitudes of a tile that begins at element `start`: element i belongs to the lane i modulo the number of lanes
   (index), whose totals stand in the place of the step's result. A lane adds its elements in rising order. */
static void add_magnitudes(const struct step *step, const void *in, int64_t start, int64_t n)
{
    float buffer[LANE_TILE];
    double *totals = (double *)step->out.at;
    for (int64_t at = 0; at < n;) {
        int64_t lane = (start + at) % step->index, m = n - at;
        m = m < step->index - lane ? m : step->index - lane;
        m = m < LANE_TILE ? m : LANE_TILE;
        add_to_lanes(widened(in, step->dtype, at, buffer, m), totals + lane, m);
        at += m;
    }
}

/* The products of a part that begins at element `start`. */
static void add_products_of(const struct products *sums, const char *const *blocks, int64_t start, int64_t elements)
{
    float buffers[MOST_GRAM][LANE_TILE];
    const float *in[MOST_GRAM];
    int is_few = (sums->count == 2 || sums->count == 3) && is_of_one_dtype(sums);
    if (is_few && start % sums->width == 0) {
        add_few_products(sums->totals, blocks, sums->count, sums->dtypes[0], sums->width, elements);
        return;
    }
    for (int64_t at = 0; at < elements;) {
        int64_t lane = (start + at) % sums->width, m = elements - at;
        m = m < sums->width - lane ? m : sums->width - lane;
        m = m < LANE_TILE ? m : LANE_TILE;
        for (int k = 0; k < sums->count; k++)
            in[k] = widened(blocks[k], sums->dtypes[k], at, buffers[k], m);
        add_all_products(in, sums->count, sums->totals + lane, sums->width, m);
        at += m;
    }
}

static char *place(const struct operand *operand, int64_t part, int64_t tile)
{
    return operand->at + part * operand->far + tile * operand->near;
}

static void run_step(const struct step *step, int64_t part, int64_t tile, int64_t n, int64_t start,
                     int is_first)
{
    const float *in[MOST_OPERANDS];
    char *out = place(&step->out, part, tile);
    for (int k = 0; k < step->count; k++)
        in[k] = (const float *)place(&step->inputs[k], part, tile);

    switch (step->operation) {
    case WIDEN:
        if (step->dtype == BFLOAT16)
            widen_bfloat16((const uint16_t *)in[0], (float *)out, n);
        else if (step->dtype == FLOAT16)
            widen_float16((const uint16_t *)in[0], (float *)out, n);
        else
            memcpy(out, in[0], (size_t)n * 4);
        break;
    case CAST:
        if (step->dtype == BFLOAT16)
            cast_bfloat16(in[0], (uint16_t *)out, n);
        else if (step->dtype == FLOAT16)
            cast_float16(in[0], (uint16_t *)out, n);
        else
            memcpy(out, in[0], (size_t)n * 4);
        break;
    case MAGNITUDES:
        if (is_first)
            add_magnitudes(step, in[0], start, n);
        break;
    case SUBTRACT:
        subtract(in[0], in[1], (float *)out, n);
        break;
    case ADD:
        add(in[0], in[1], (float *)out, n);
        break;
    case WEIGHTED_SUM:
        weighted_sum(in, step->numbers, step->count, (float *)out, n);
        break;
    case TRIM:
        trim(step->numbers, step->index, in[0], (float *)out, start, n);
        break;
    case TRIM_OUTLIERS:
        trim_outliers(step, in[0], (float *)out, start, n);
        break;
    case DROP:
        drop(step, in[0], (float *)out, start, n);
        break;
    case MAGPRUNE:
        magprune(step->words, (const int32_t *)step->numbers, in[0], (float *)out, start, n);
        break;
    case VARIANCE:
        variance(in, step->count, (float *)out, n);
        break;
    case SELECT:
        select_by(step, in[0], in[1], (float *)out, start, n);
        break;
    case SCE:
        sce(step, in, (float *)out, n);
        break;
    case CONSENSUS:
        consensus(step, in, (float *)out, n);
        break;
    }
}

/* Runs the tiles of a part that begins at element `start`.

   Tiles of the same lanes follow on each other, so that the lanes' totals stay in the first cache. A lane still adds its
   elements in rising order, and nothing else depends on the order of tiles. */
static void run_tiles(const struct step *steps, int32_t count, int64_t part, int64_t length, int64_t start,
                      int64_t tile_elements, int is_first)
{
    int64_t row = LANES % tile_elements == 0 && start % LANES == 0 ? LANES : length;
    for (int64_t lane = 0; lane < row && lane < length; lane += tile_elements)
        for (int64_t tile = lane; tile < length; tile += row) {
            int64_t n = length - tile < tile_elements ? length - tile : tile_elements;
            for (int32_t s = 0; s < count; s++)
                run_step(&steps[s], part, tile, n, start + tile, is_first);
        }
}

static int read_all(const struct read *read, int64_t part, int64_t start, int64_t elements)
{
    char *out = place(&read->buffer, part, 0);
    int64_t left = elements * read->itemsize, offset = read->offset + start * read->itemsize;
    while (left > 0) {
        ssize_t count = pread(read->descriptor, out, (size_t)left, offset);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return count < 0 ? errno : -1;
        out += count, offset += count, left -= count;
    }
    return 0;
}

/* Runs a pass over one block of `elements`, the first of which is number `start` of its tensor, part by part. Sums are
   added to only where the pass `is_first`.

   Returns 0; else which input could not be read, counted from 1, with the reason in `error`: an errno, or -1 where the
   file ended. */
EXPORT int32_t mergeflow_run(const struct read *reads, int32_t read_count, const struct step *steps, int32_t step_count,
                             const struct products *sums, int32_t sums_count, int32_t is_first, int64_t elements,
                             int64_t start, int64_t part_elements, int64_t tile_elements, int32_t *error)
{
    for (int64_t part = 0; part < elements; part += part_elements) {
        int64_t length = elements - part < part_elements ? elements - part : part_elements;
        for (int32_t r = 0; r < read_count; r++)
            if ((*error = read_all(&reads[r], part, start + part, length)) != 0)
                return r + 1;
        run_tiles(steps, step_count, part, length, start + part, tile_elements, is_first);
        for (int32_t s = 0; is_first && s < sums_count; s++) {
            const char *blocks[MOST_GRAM];
            for (int k = 0; k < sums[s].count; k++)
                blocks[k] = place(&sums[s].inputs[k], part, 0);
            add_products_of(&sums[s], blocks, start + part, length);
        }
    }
    return 0;
}

struct counts {
    int64_t above, at_high, at_low, inside;
};

#define GROUP 16

HOT static void compare_tile(const float *restrict in, float low, float high, struct counts *counts,
                             float *restrict inside, int64_t n)
{
    int32_t up_to_high = 0, below_high = 0, above_low = 0, at_low = 0;
    for (int64_t i = 0; i < n; i++) {
        float x = fabsf(in[i]);
        up_to_high += x <= high;
        below_high += x < high;
        above_low += (x > low) & (x < high);
        at_low += x == low;
    }
    counts->above += n - up_to_high;
    counts->at_high += up_to_high - below_high;
    counts->at_low += at_low;
    if (above_low == 0)
        return;
    for (int64_t group = 0; group < n; group += GROUP) {
        int64_t m = n - group < GROUP ? n - group : GROUP;
        int any = 0;
        for (int64_t i = 0; i < m; i++) {
            float x = fabsf(in[group + i]);
            any |= (x > low) & (x < high);
        }
        if (!any)
            continue;
        for (int64_t i = 0; i < m; i++) {
            float x = fabsf(in[group + i]);
            inside[counts->inside] = x;
            counts->inside += (x > low) & (x < high);
        }
    }
}

/* Compares the magnitudes of a block with [low, high] (kernels/tally.py); `inside` has room for all and one more. */
EXPORT void mergeflow_compare(const void *block, int32_t dtype, int64_t elements, float low, float high,
                              struct counts *counts, float *inside)
{
    float buffer[TILE];
    memset(counts, 0, sizeof *counts);
    for (int64_t tile = 0; tile < elements; tile += TILE) {
        int64_t n = elements - tile < TILE ? elements - tile : TILE;
        compare_tile(widened(block, dtype, tile, buffer, n), low, high, counts, inside, n);
    }
    if (low == high)
        counts->at_low = 0;
}

#define PRODUCT_TILE 512

/* out[j] += sum over k of left[k] * right[k, j], k rising, for two rows at once: each number of `right` is widened once
   for both. A product of two float32 is exact in float64. */
HOT static void add_two_rows(double *restrict out0, double *restrict out1, const float *restrict left0,
                             const float *restrict left1, const float *restrict right, int64_t rank, int64_t columns,
                             int64_t n)
{
    int64_t k = 0;
    for (; k + 4 <= rank; k += 4) {
        const float *restrict a = right + k * columns, *restrict b = a + columns;
        const float *restrict c = b + columns, *restrict d = c + columns;
        double a0 = left0[k], b0 = left0[k + 1], c0 = left0[k + 2], d0 = left0[k + 3];
        double a1 = left1[k], b1 = left1[k + 1], c1 = left1[k + 2], d1 = left1[k + 3];
        for (int64_t j = 0; j < n; j++) {
            double aj = a[j], bj = b[j], cj = c[j], dj = d[j];
            out0[j] = (((out0[j] + a0 * aj) + b0 * bj) + c0 * cj) + d0 * dj;
            out1[j] = (((out1[j] + a1 * aj) + b1 * bj) + c1 * cj) + d1 * dj;
        }
    }
    for (; k < rank; k++)
        for (int64_t j = 0; j < n; j++) {
            out0[j] += (double)left0[k] * right[k * columns + j];
            out1[j] += (double)left1[k] * right[k * columns + j];
        }
}

HOT static void add_one_row(double *restrict out, const float *restrict left, const float *restrict right, int64_t rank,
                            int64_t columns, int64_t n)
{
    int64_t k = 0;
    for (; k + 4 <= rank; k += 4) {
        const float *restrict a = right + k * columns, *restrict b = a + columns;
        const float *restrict c = b + columns, *restrict d = c + columns;
        double a0 = left[k], b0 = left[k + 1], c0 = left[k + 2], d0 = left[k + 3];
        for (int64_t j = 0; j < n; j++)
            out[j] = (((out[j] + a0 * a[j]) + b0 * b[j]) + c0 * c[j]) + d0 * d[j];
    }
    for (; k < rank; k++)
        for (int64_t j = 0; j < n; j++)
            out[j] += (double)left[k] * right[k * columns + j];
}

/* The products of a rectangle, a stripe of columns at a time, so that the stripe of `right` stays in the cache. */
static void rectangle_products(double *out, const float *left, const float *right, int64_t rank, int64_t columns,
                               int64_t rows, int64_t width)
{
    memset(out, 0, (size_t)(rows * width) * sizeof *out);
    for (int64_t stripe = 0; stripe < width; stripe += PRODUCT_TILE) {
        int64_t n = width - stripe < PRODUCT_TILE ? width - stripe : PRODUCT_TILE, row = 0;
        for (; row + 2 <= rows; row += 2)
            add_two_rows(out + row * width + stripe, out + (row + 1) * width + stripe, left + row * rank,
                         left + (row + 1) * rank, right + stripe, rank, columns, n);
        if (row < rows)
            add_one_row(out + row * width + stripe, left + row * rank, right + stripe, rank, columns, n);
    }
}

/* A flat range of left * right (views/low_rank.py): it begins in column `first`, in the row that `left` begins with. */
EXPORT void mergeflow_products(double *out, const float *left, const float *right, int64_t rank, int64_t columns,
                               int64_t first, int64_t elements)
{
    if (first > 0) {
        int64_t n = columns - first < elements ? columns - first : elements;
        rectangle_products(out, left, right + first, rank, columns, 1, n);
        out += n, elements -= n, left += rank;
    }
    int64_t rows = elements / columns;
    rectangle_products(out, left, right, rank, columns, rows, columns);
    if (elements > rows * columns)
        rectangle_products(out + rows * columns, left + rows * rank, right, rank, columns, 1, elements - rows * columns);
}
