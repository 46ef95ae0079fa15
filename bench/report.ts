/** Figures as text: on stdout, and between the markers of README.md. */
import { cpus, loadavg, release } from 'node:os';
import { hasWrk } from './load.ts';
import { type Figures, median, ratios, type Turns } from './measure.ts';
import { type Memory, MOST } from './memory.ts';
import { WORKS } from './works.ts';

/** `busy`: the load average of the minute before the run, near 0 on a quiet machine. */
export type Machine = {
  date: string;
  cpu: string;
  cores: number;
  kernel: string;
  node: string;
  postgres: string;
  load: string;
  busy: number;
};

/** `failures`: by work, why it has no figures. */
export type Run = {
  machine: Machine;
  figures: Figures;
  memory?: Memory;
  failures: Record<string, string>;
};

/** results.json: the last full run by major version of Node. */
export type Results = Record<string, Run>;

export async function describeMachine(postgres: string, busy = loadavg()[0]): Promise<Machine> {
  const [{ model: cpu = '' } = {}, ...others] = cpus();
  const [date = ''] = new Date().toISOString().split('T');
  const load = (await hasWrk) ? 'wrk' : 'autocannon';
  const versions = { kernel: release(), node: process.version, postgres };
  return { date, cpu, cores: others.length + 1, ...versions, load, busy: busy ?? 0 };
}

/** The service's turns and those of who it is compared with. */
export function pairOf(of: Record<string, Turns> = {}) {
  const [[, ours] = [], [peer, theirs] = []] = Object.entries(of);
  return { ours, peer, theirs };
}

/** What became of each target; `met` is undefined where there is no target. */
export function judge(work: string, { figures, failures }: Run) {
  const target = WORKS[work]?.target ?? {};
  const { ours, theirs } = pairOf(figures[work]);
  if (!ours) return [{ text: failures[work] ? 'failed' : 'not measured', met: false }];
  const { rate: times, cpu } = theirs ? ratios(ours, theirs) : {};
  const { perSecond } = target;
  const rate = median(ours.rate);
  return [
    ...(times === undefined ? [] : [{ text: times.toFixed(2), met: atLeast(times, target.rate) }]),
    ...(cpu === undefined ? [] : [{ text: cpu.toFixed(2), met: atLeast(target.cpu, cpu) }]),
    ...(perSecond ? [{ text: `${rounded(rate)}/s`, met: atLeast(rate, perSecond) }] : []),
  ];
}

function atLeast(value?: number, limit?: number): boolean | undefined {
  return value === undefined || limit === undefined ? undefined : value >= limit;
}

/** A line per target, with the outcome of each run. */
export function verdicts(results: Results): string[] {
  const runs = Object.entries(results);
  const shown = (text: string, met?: boolean) => (met === false ? `**${text} missed**` : text);
  const lines = Object.entries(WORKS).map(([work, { title, target }]) => {
    const peers = runs.map(([, { figures }]) => pairOf(figures[work]).peer);
    const { rate, cpu, perSecond } = target;
    const limits = [
      rate === undefined ? '' : `≥ ${rate}`,
      cpu === undefined ? '' : `≤ ${cpu}`,
      perSecond === undefined ? '' : `≥ ${rounded(perSecond)}/s`,
    ];
    const outcomes = runs.map(([, run]) =>
      judge(work, run)
        .map(({ text, met }) => shown(text, met))
        .join(' · '),
    );
    const against = peers.find((peer) => peer !== undefined) ?? '';
    return [title, against, limits.filter(Boolean).join(' · '), ...outcomes];
  });
  const memory = Object.entries(MOST).map(([when, most]) => {
    const megabytes = ({ memory }: Run) => memory?.[when as keyof Memory] ?? Number.NaN;
    const outcomes = runs.map(([, run]) => {
      const mb = megabytes(run);
      return shown(`${mb.toFixed(0)} MB`, mb <= most);
    });
    return [`resident memory, ${when}`, '', `≤ ${most} MB`, ...outcomes];
  });
  const header = ['work', 'compared with', 'target', ...runs.map(([node]) => `Node ${node}`)];
  return markdown([header, ...lines, ...memory]);
}

/** For the terminal: the figures, and the ratios of the first of each work to the second. */
export function summary(run: Run): string[] {
  const lines = Object.entries(run.figures).flatMap(([work, of]) => {
    const { ours, peer, theirs } = pairOf(of);
    if (!ours || !theirs) return [];
    const { rate, cpu } = ratios(ours, theirs);
    return [[WORKS[work]?.title ?? '', rate.toFixed(2), cpu.toFixed(2), peer ?? '']];
  });
  const header = ['median of the ratios', 'throughput', 'CPU', 'to'];
  return [...figureLines(run), '', ...columns([header, ...lines])];
}

/** A line per work and contestant: `median (minimum)` over the turns. */
export function figureLines({ figures, failures }: Run): string[] {
  const header = ['', 'per second', 'p50 ms', 'p99 ms', 'service µs', 'PostgreSQL µs'];
  const lines = Object.entries(WORKS).flatMap(([work, { title }]) => [
    ...(failures[work] ? [[`${title}: ${failures[work]}`]] : figures[work] ? [[title]] : []),
    ...Object.entries(figures[work] ?? {}).map(([name, { rate, p50, p99, node, postgres }]) => [
      `  ${name}`,
      spread(rate, rounded),
      p50.length > 0 ? median(p50).toFixed(2) : '',
      p99.length > 0 ? median(p99).toFixed(2) : '',
      spread(node, short),
      spread(postgres, short),
    ]),
  ]);
  return columns([header, ...lines]);
}

function spread(numbers: number[], show: (value: number) => string): string {
  return `${show(median(numbers))} (${show(Math.min(...numbers))})`;
}

function short(value: number): string {
  return value.toFixed(value < 10 ? 1 : 0);
}

/** Three digits, with spaces between thousands. */
export function rounded(value: number): string {
  const digits = value < 100 ? value : Number(value.toPrecision(3));
  return digits.toLocaleString('en', { maximumFractionDigits: 0 }).replaceAll(',', ' ');
}

/** README.md with what its marked parts say of these results. */
export function record(readme: string, results: Results): string {
  const figures = Object.values(results).flatMap((run) => {
    const { date, cpu, cores, kernel, node, postgres, load, busy } = run.machine;
    const machine =
      `${date}, Node ${node}, PostgreSQL ${postgres}, ${cores} cores of ${cpu}, Linux ${kernel}, ` +
      `load by ${load}; load average of the minute before ${busy.toFixed(1)}`;
    return [`${machine}:`, '', '```', ...figureLines(run), '```', ''];
  });
  return [
    ['targets', verdicts(results)] as const,
    ['figures', figures.slice(0, -1)] as const,
  ].reduce((text, [name, lines]) => {
    const place = new RegExp(`(<!-- ${name} -->\\n)[^]*?(<!-- /${name} -->)`);
    if (!place.test(text)) throw new Error(`README.md has no place for ${name}`);
    return text.replace(place, (_, from, to) => `${from}\n${lines.join('\n')}\n\n${to}`);
  }, readme);
}

/** With each list on one line, as the formatter has it. */
export function toJson(results: Results): string {
  const onOneLine = (list: string) =>
    list.replace(/\s+/g, ' ').replace('[ ', '[').replace(' ]', ']');
  return `${JSON.stringify(results, null, 2).replace(/\[[^[\]]*\]/g, onOneLine)}\n`;
}

function markdown([header = [], ...lines]: string[][]): string[] {
  return [header, header.map(() => '---'), ...lines].map((cells) => `| ${cells.join(' | ')} |`);
}

/** The first column to the left, the others to the right. */
function columns(lines: string[][]): string[] {
  const cells = lines.filter((line) => line.length > 1);
  const widths = (lines[0] ?? []).map((_, at) =>
    Math.max(...cells.map((line) => line[at]?.length ?? 0)),
  );
  const padded = (cell: string, at: number) =>
    at === 0 ? cell.padEnd(widths[at] ?? 0) : cell.padStart(widths[at] ?? 0);
  return lines.map((line) => line.map(padded).join('  ').trimEnd());
}
