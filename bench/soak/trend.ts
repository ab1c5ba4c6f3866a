/** How fast a figure rises, in units a minute, and how far that may be off: half of the 95 % interval. */
export interface Trend {
  readonly slope: number;
  readonly margin: number;
}

/** Neighbouring samples of memory are alike: the trend is taken over the means of so many equal parts of the time. */
const BLOCKS = 12;
/** Two-sided 95 % of the normal distribution. */
const Z = 1.96;

/** Least squares over points `[minute, value]`. Not a number where there are too few of them. */
export function trendOf(points: readonly (readonly [number, number])[]): Trend {
  const size = Math.max(1, Math.floor(points.length / BLOCKS));
  const blocks = Array.from({ length: Math.floor(points.length / size) }, (_, i) => {
    const part = points.slice(i * size, (i + 1) * size);
    return [mean(part.map(([at]) => at)), mean(part.map(([, value]) => value))] as const;
  });
  const [x, y] = [mean(blocks.map(([at]) => at)), mean(blocks.map(([, value]) => value))];
  const spread = sum(blocks.map(([at]) => (at - x) ** 2));
  const slope = sum(blocks.map(([at, value]) => (at - x) * (value - y))) / spread;
  const freedom = blocks.length - 2;
  const rest = sum(blocks.map(([at, value]) => (value - y - slope * (at - x)) ** 2));
  return { slope, margin: student(freedom) * Math.sqrt(rest / freedom / spread) };
}

/** Student's t, two-sided 95 %: the expansion by Cornish and Fisher, within 1 % from 5 degrees of freedom on. */
function student(freedom: number): number {
  return Z + (Z ** 3 + Z) / (4 * freedom) + (5 * Z ** 5 + 16 * Z ** 3 + 3 * Z) / (96 * freedom ** 2);
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

function mean(values: readonly number[]): number {
  return sum(values) / values.length;
}
