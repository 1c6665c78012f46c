// Numbers as people read them.

/** 1234567 as 1,234,567. */
export const whole = (value) => Math.round(value).toLocaleString("en-US");

/** Four significant digits; powers of ten where there would be many zeros. */
export function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) {
    return Number(value.toPrecision(3)).toExponential().replace("e+", "e");
  }
  if (size >= 1000) return whole(value);
  return String(Number(value.toPrecision(4)));
}

/** 12k, 3.4M, 2B. */
export function brief(value) {
  for (const [unit, letter] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= unit) return `${Number((value / unit).toPrecision(4))}${letter}`;
  }
  return short(value);
}

/** Seconds as 5s, 3:20, 2:03:20. */
export function clock(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const rounded = Math.max(0, Math.round(seconds));
  if (rounded < 60) return `${rounded}s`;
  const two = (value) => String(value).padStart(2, "0");
  const hours = Math.floor(rounded / 3600), minutes = Math.floor(rounded / 60) % 60;
  return hours ? `${hours}:${two(minutes)}:${two(rounded % 60)}` : `${minutes}:${two(rounded % 60)}`;
}

const ROUND_SECONDS = [1, 5, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400];

/** Round values between two ends, `about` so many: the marks of an axis; round as times where they are `seconds`. */
export function ticks(low, high, about, logarithmic, seconds = false) {
  if (logarithmic) {
    const result = [], decades = Math.log10(high / low);
    const factors = decades > 4 ? [1] : decades > 1 ? [1, 3] : [1, 1.5, 2, 3, 5, 7];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const factor of factors) result.push(factor * 10 ** power);
    }
    const inside = result.filter((value) => value >= low * 0.9999 && value <= high * 1.0001);
    if (inside.length > 1) return inside.filter((_, i) => i % Math.ceil(inside.length / (about + 2)) === 0);
  }
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  const decimal = () => [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw * 0.999);
  const step = (seconds && ROUND_SECONDS.find((candidate) => candidate >= raw)) || decimal();
  const result = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) result.push(i * step || 0);
  return result;
}

/** Index of the value nearest to x in a sorted array. */
export function nearest(sorted, x) {
  let low = 0, high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= x) low = middle; else high = middle;
  }
  return Math.abs(sorted[low] - x) <= Math.abs(sorted[high] - x) ? low : high;
}

/** The straight-line value at x of points whose xs are sorted; the ends' values outside. */
export function between(xs, ys, x) {
  if (!xs.length) return x;
  if (x <= xs[0]) return ys[0];
  if (x >= xs[xs.length - 1]) return ys[ys.length - 1];
  const i = nearest(xs, x), j = xs[i] <= x ? i : i - 1;
  const width = xs[j + 1] - xs[j];
  return width ? ys[j] + (ys[j + 1] - ys[j]) * (x - xs[j]) / width : ys[j];
}

/** An exponential mean that starts without bias (Kingma and Ba 2014, section 3): weight `keep` for what was before. */
export function smoothed(values, keep) {
  let mean = 0, weight = 0;
  return values.map((value) => {
    mean = keep * mean + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return mean / weight;
  });
}
