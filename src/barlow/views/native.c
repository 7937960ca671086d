/* The two inner loops of making views on a CPU: resampling a crop, and the ops on its values.
 *
 * Each function equals the torch code that barlow.views.native names beside it, to float rounding. One view is worked
 * on at a time, so that it stays in the core's nearest cache. Nothing is allocated: `work` is the caller's.
 */

#if defined(__linux__)
#define _DEFAULT_SOURCE
#include <sys/mman.h>
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef int64_t i64;

#define LANES 16
#define ROUND_UP(n) (((n) + LANES - 1) / LANES * LANES)

static inline float least(float a, float b) { return a < b ? a : b; }
static inline float most(float a, float b) { return a > b ? a : b; }
static inline float clip(float x, float low, float high) { return least(most(x, low), high); }

/* Ask for large pages in the memory of an array that is about to be written for the first time. */
void barlow_advise(void *start, i64 bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    uintptr_t page = 4096, first = ((uintptr_t)start + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)start + bytes) / page * page;
    if (end > first) madvise((void *)first, end - first, MADV_HUGEPAGE);
#else
    (void)start, (void)bytes;
#endif
}

/* --- Sums of rows ------------------------------------------------------------------------------------------------
 * Both resampling and blur are, along each axis, weighted sums of rows; the other axis is reached by a transposition.
 */

typedef float Lane __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* out[i] = sum over k of weight[k] * row[k][i], for n values, n a multiple of LANES; the sums stay in registers */
static void sum_rows(float *out, const float *const *row, const float *weight, int taps, int n) {
    int i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        Lane left = {0}, right = {0};
        for (int k = 0; k < taps; k++) {
            left += weight[k] * *(const Lane *)(row[k] + i);
            right += weight[k] * *(const Lane *)(row[k] + i + LANES);
        }
        *(Lane *)(out + i) = left;
        *(Lane *)(out + i + LANES) = right;
    }
    for (; i < n; i += LANES) {
        Lane sum = {0};
        for (int k = 0; k < taps; k++) sum += weight[k] * *(const Lane *)(row[k] + i);
        *(Lane *)(out + i) = sum;
    }
}

/* to[j][i] = from[i][j], of a block of rows x columns, both multiples of LANES, in rows of the given strides */
static void transpose(float *restrict to, const float *restrict from, int rows, int columns, int to_stride,
                      int from_stride) {
    for (int i = 0; i < rows; i += LANES)
        for (int j = 0; j < columns; j += LANES)
            for (int b = 0; b < LANES; b++)
                for (int a = 0; a < LANES; a++)
                    to[(i64)(j + b) * to_stride + i + a] = from[(i64)(i + a) * from_stride + j + b];
}

/* --- Crop and resize ------------------------------------------------------------------------------------------- */

#define MOST_TAPS 512

typedef struct {
    int first, count;
    float weight[MOST_TAPS];
} Taps;

static float kernel_at(float t, int cubic) {
    t = fabsf(t);
    if (!cubic) return t < 1 ? 1 - t : 0;
    if (t < 1) return (1.5f * t - 2.5f) * t * t + 1;
    return t < 2 ? ((-0.5f * t + 2.5f) * t - 4) * t + 2 : 0; /* Keys' kernel, a = -1/2 */
}

/* The pixels of the crop under the antialiased filter of output pixel i, counted from the crop's first */
static void taps_of(Taps *taps, int i, int length, int size, int cubic) {
    float scale = (float)length / size, stretch = most(scale, 1), reach = cubic ? 2 : 1, total = 0;
    float centre = (i + 0.5f) * scale;
    int first = (int)floorf(centre - reach * stretch + 0.5f);
    int stop = first + 2 * (int)ceilf(reach * stretch) + 1;
    first = first < 0 ? 0 : first;
    stop = stop > length ? length : stop;
    taps->first = first;
    taps->count = stop - first;
    for (int k = 0; k < taps->count; k++)
        total += taps->weight[k] = kernel_at((first + k - (centre - 0.5f)) / stretch, cubic);
    for (int k = 0; k < taps->count; k++) taps->weight[k] /= total;
}

/* Rows of `width` values, a multiple of LANES: [length, width] to [size, width] */
static void resize_rows(float *out, const float *in, int length, int size, int width, int flip, int cubic) {
    Taps taps;
    const float *row[MOST_TAPS];
    for (int i = 0; i < size; i++) {
        taps_of(&taps, i, length, size, cubic);
        for (int k = 0; k < taps.count; k++) row[k] = in + (i64)(taps.first + k) * width;
        sum_rows(out + (i64)(flip ? size - 1 - i : i) * width, row, taps.weight, taps.count, width);
    }
}

/* n values, `step` apart, as floats; the next multiple of LANES is filled with zeros */
static void load(float *restrict to, const void *from, int is_byte, i64 step, int n) {
    const uint8_t *bytes = from;
    const float *floats = from;
    if (is_byte && step == 1)
        for (int x = 0; x < n; x++) to[x] = bytes[x];
    else if (is_byte && step == 3)
        for (int x = 0; x < n; x++) to[x] = bytes[3 * x];
    else if (is_byte)
        for (int x = 0; x < n; x++) to[x] = bytes[x * step];
    else
        for (int x = 0; x < n; x++) to[x] = floats[x * step];
    memset(to + n, 0, sizeof(float) * (ROUND_UP(n) - n));
}

static const void *value_at(const void *values, int is_byte, i64 at) {
    return is_byte ? (const void *)((const uint8_t *)values + at) : (const void *)((const float *)values + at);
}

/* n views [channels, size, size] of images (strides of sample, channel, row, column, in values), image[v] the sample
 * of view v, box[v] its top, left, height, width, mirror, upend, (turns: not here). `work` holds three times `room`
 * floats, room = channels * ROUND_UP(extent)^2, extent the largest of the images' height and width and of size.
 * Byte images are clipped to their range, which bicubic overshoots. */
void barlow_resample(i64 n, i64 channels, i64 size, i64 cubic, const void *images, i64 is_byte, const i64 *stride,
                     const i64 *image, const i64 *box, float *out, float *work, i64 room) {
    float *a = work, *b = work + room, *c = work + 2 * room;
    int tall = ROUND_UP(size);
    for (i64 v = 0; v < n; v++, box += 7) {
        int height = box[2], width = box[3], wide = ROUND_UP(width);
        i64 corner = image[v] * stride[0] + box[0] * stride[2] + box[1] * stride[3];
        for (i64 y = 0; y < height; y++)
            for (i64 k = 0; k < channels; k++)
                load(a + (y * channels + k) * wide,
                     value_at(images, is_byte, corner + k * stride[1] + y * stride[2]), is_byte, stride[3], width);
        resize_rows(b, a, height, size, channels * wide, box[5], cubic); /* [size, channels, wide] */
        for (i64 k = 0; k < channels; k++)
            transpose(c + k * tall, b + k * wide, tall, wide, channels * tall, channels * wide);
        resize_rows(a, c, width, size, channels * tall, box[4], cubic); /* [size, channels, tall] */
        for (i64 k = 0; k < channels; k++, out += size * size) {
            transpose(b, a + k * tall, tall, tall, tall, channels * tall);
            for (i64 y = 0; y < size; y++)
                for (i64 x = 0; x < size; x++)
                    out[y * size + x] = is_byte ? clip(b[y * tall + x], 0, 255) : b[y * tall + x];
        }
    }
}

/* n images [channels, size, size] (strides as above) as floats, channel by channel */
void barlow_planes(i64 n, i64 channels, i64 height, i64 width, const uint8_t *images, const i64 *stride, float *out,
                   float *line) {
    for (i64 v = 0; v < n; v++)
        for (i64 k = 0; k < channels; k++)
            for (i64 y = 0; y < height; y++, out += width) {
                load(line, images + v * stride[0] + k * stride[1] + y * stride[2], 1, stride[3], width);
                memcpy(out, line, sizeof(float) * width);
            }
}

/* --- Colour ---------------------------------------------------------------------------------------------------- */

static void brightness(float *x, i64 n, float factor, float top) {
    for (i64 i = 0; i < n; i++) x[i] = clip(x[i] * factor, 0, top);
}

static float mean_of(const float *x, i64 n) {
    double total = 0;
    i64 i = 0;
    for (; i + 1024 <= n; i += 1024) {
        float sum[LANES] = {0};
        for (int j = 0; j < 1024; j += LANES)
            for (int l = 0; l < LANES; l++) sum[l] += x[i + j + l];
        for (int l = 0; l < LANES; l++) total += sum[l];
    }
    for (; i < n; i++) total += x[i];
    return total / n;
}

static void contrast(float *x, i64 channels, i64 n, const float *luma, float factor, float top) {
    float gray = 0;
    for (i64 k = 0; k < channels; k++) gray += luma[k] * mean_of(x + k * n, n);
    float add = (1 - factor) * gray;
    for (i64 i = 0; i < channels * n; i++) x[i] = clip(x[i] * factor + add, 0, top);
}

static void saturation(float *restrict red, float *restrict green, float *restrict blue, i64 n, const float *luma,
                       float factor, float top) {
    for (i64 i = 0; i < n; i++) {
        float gray = (1 - factor) * (luma[0] * red[i] + luma[1] * green[i] + luma[2] * blue[i]);
        red[i] = clip(red[i] * factor + gray, 0, top);
        green[i] = clip(green[i] * factor + gray, 0, top);
        blue[i] = clip(blue[i] * factor + gray, 0, top);
    }
}

static inline float pure(float hue) { return clip(fabsf(fabsf(hue) - 3), 1, 2) - 1; }

static void hue(float *restrict red, float *restrict green, float *restrict blue, i64 n, float shift) {
    float turn = 6 * shift, at_green = shift < 0 ? turn + 4 : turn - 2, at_blue = shift < 0 ? turn + 2 : turn - 4;
    for (i64 i = 0; i < n; i++) {
        float r = red[i], g = green[i], b = blue[i];
        float low = least(least(r, g), b), chroma = most(most(r, g), b) - low;
        float h = copysignf((g + b - r - low) / most(chroma, 1e-12f) + 1, g - b);
        red[i] = low + chroma * pure(h + turn);
        green[i] = low + chroma * pure(h + at_green);
        blue[i] = low + chroma * pure(h + at_blue);
    }
}

static void grayscale(float *restrict red, float *restrict green, float *restrict blue, i64 n, const float *luma) {
    for (i64 i = 0; i < n; i++)
        red[i] = green[i] = blue[i] = luma[0] * red[i] + luma[1] * green[i] + luma[2] * blue[i];
}

/* --- Blur ------------------------------------------------------------------------------------------------------ */

static int reflected(int i, int n) {
    i = i < 0 ? -i : i;
    return i < n ? i : 2 * n - 2 - i;
}

static int blur_taps(float *weight, float sigma, int height, int width) {
    int shorter = height < width ? height : width, radius = (int)ceilf(4 * sigma);
    radius = radius > shorter - 1 ? shorter - 1 : radius < 1 ? 1 : radius;
    radius = radius > MOST_TAPS / 2 - 1 ? MOST_TAPS / 2 - 1 : radius;
    float total = 0;
    for (int t = -radius; t <= radius; t++) total += weight[radius + t] = expf(-0.5f * (t / sigma) * (t / sigma));
    for (int t = 0; t <= 2 * radius; t++) weight[t] /= total;
    return radius;
}

/* One plane in place; `work` holds two planes with margins */
static void blur(float *x, int height, int width, float sigma, float *work) {
    float weight[MOST_TAPS];
    const float *row[MOST_TAPS];
    int radius = blur_taps(weight, sigma, height, width), padded = ROUND_UP(width), stride = padded + 2 * radius;
    float *wide = work, *line = work + (i64)height * padded;
    for (int y = 0; y < height; y++) { /* along the row: the taps are shifts of one padded line */
        for (int i = 0; i < radius; i++) line[i] = x[(i64)y * width + reflected(i - radius, width)];
        memcpy(line + radius, x + (i64)y * width, sizeof(float) * width);
        for (int i = width; i < width + radius; i++) line[radius + i] = x[(i64)y * width + reflected(i, width)];
        for (int i = width + 2 * radius; i < stride; i++) line[i] = 0;
        for (int t = 0; t <= 2 * radius; t++) row[t] = line + t;
        sum_rows(wide + (i64)y * padded, row, weight, 2 * radius + 1, padded);
    }
    for (int y = 0; y < height; y++) {
        for (int t = 0; t <= 2 * radius; t++) row[t] = wide + (i64)reflected(y + t - radius, height) * padded;
        sum_rows(line, row, weight, 2 * radius + 1, padded);
        memcpy(x + (i64)y * width, line, sizeof(float) * width);
    }
}

/* --- All ops of a view ------------------------------------------------------------------------------------------ */

enum { BRIGHTNESS, CONTRAST, SATURATION, HUE, OPS };

/* n views x [channels, height, width] with values in [0, top], in place: the ops of jitter in the order
 * orders[order[v]] (order -1: none; op -1: no op), then grayscale, blur (sigma 0: none), solarize, and
 * (x - shift) * scale per channel. Factors are [n, OPS]; `work` holds (height + 1) * (ROUND_UP(width) + MOST_TAPS). */
void barlow_tone(i64 n, i64 channels, i64 height, i64 width, float *x, float top, const float *luma,
                 const int8_t *orders, const i64 *order, const float *factors, const uint8_t *gray, const float *sigma,
                 const uint8_t *solarize, const float *shift, const float *scale, float *work) {
    i64 plane = height * width;
    for (i64 v = 0; v < n; v++, x += channels * plane) {
        float *green = x + plane, *blue = x + 2 * plane;
        for (int slot = 0; order[v] >= 0 && slot < OPS; slot++) {
            int op = orders[order[v] * OPS + slot];
            float factor = op < 0 ? 0 : factors[v * OPS + op];
            if (op == BRIGHTNESS) brightness(x, channels * plane, factor, top);
            if (op == CONTRAST) contrast(x, channels, plane, luma, factor, top);
            if (op == SATURATION && channels == 3) saturation(x, green, blue, plane, luma, factor, top);
            if (op == HUE && channels == 3) hue(x, green, blue, plane, factor);
        }
        if (gray[v]) grayscale(x, green, blue, plane, luma);
        for (i64 k = 0; k < channels && sigma[v] > 0; k++) blur(x + k * plane, height, width, sigma[v], work);
        if (solarize[v])
            for (i64 i = 0; i < channels * plane; i++) x[i] = least(x[i], top - x[i]);
        for (i64 k = 0; k < channels && scale; k++)
            for (i64 i = 0; i < plane; i++) x[k * plane + i] = (x[k * plane + i] - shift[k]) * scale[k];
    }
}
