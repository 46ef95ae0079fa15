/** The picture of results.json: `node bench/chart.ts` draws it anew. Bars by ECharts, without a DOM. */
import { readFile, writeFile } from 'node:fs/promises';
import * as echarts from 'echarts';
import type { Figures } from './measure.ts';
import { type Results, rounded } from './report.ts';
import * as rows from './targets.ts';

/**
 * ECharts writes colours into attributes, where no media query reaches. So it gets these, which
 * nothing else has, and they become variables of a style, which has a light and a dark scheme.
 */
const COLOURS: Record<string, { given: string; light: string; dark: string }> = {
  text: { given: '#000001', light: '#1f2328', dark: '#e6edf3' },
  faint: { given: '#000002', light: '#59636e', dark: '#9198a1' },
  line: { given: '#000003', light: '#d1d9e0', dark: '#3d444d' },
  paper: { given: '#000004', light: '#ffffff', dark: '#0d1117' },
  ours: { given: '#000005', light: '#0a69da', dark: '#4493f8' },
  fastify: { given: '#000006', light: '#8c959f', dark: '#848d97' },
  express: { given: '#000007', light: '#b9c0c8', dark: '#5c6570' },
  flask: { given: '#000008', light: '#d4a72c', dark: '#d29922' },
};
const given = (name: string) => COLOURS[name]?.given ?? '';

const WORKS = [
  ...[rows.READ, rows.READ_ALONE, rows.CREATE, rows.REPLACE],
  ...[rows.LISTS, rows.SAME_LIST, rows.FILTER],
];
const CONTESTANTS = [
  { name: rows.OURS, colour: 'ours' },
  { name: rows.FASTIFY, colour: 'fastify' },
  { name: rows.EXPRESS, colour: 'express' },
  { name: rows.FLASK, colour: 'flask' },
];
const TITLE = 'Requests per second, in units of Fastify + pg';
const WIDTH = 860;
const ROW = 21; // height of a bar and the room around it
const HEAD = 70;
const FOOT = 36;

/** The rates as bars in units of Fastify's; each says who it is and the requests per second. */
export function drawChart({ figures, machine, date }: Results): string {
  const bars = WORKS.flatMap((work) => barsOf(work, figures[work]));
  const height = HEAD + bars.length * ROW + FOOT;
  const options = { renderer: 'svg', ssr: true, width: WIDTH, height } as const;
  const chart = echarts.init(null, null, options);
  const { cpu, cores, node, postgres } = machine;
  const faint = { color: given('faint'), fontSize: 12 };
  const line = { lineStyle: { color: given('line') } };
  chart.setOption({
    animation: false,
    backgroundColor: given('paper'),
    textStyle: { fontFamily: 'system-ui, sans-serif' },
    title: {
      text: TITLE,
      subtext: `${cores} cores of ${cpu} for service, database and load · Node ${node} · PostgreSQL ${postgres} · ${date.slice(0, 10)}`,
      left: 11,
      top: 8,
      borderColor: given('line'),
      textStyle: { color: given('text'), fontSize: 16 },
      subtextStyle: faint,
    },
    grid: { left: 20, right: 150, top: HEAD, bottom: FOOT },
    xAxis: { type: 'value', axisLabel: { ...faint, formatter: '{value} x' }, splitLine: line },
    yAxis: { type: 'category', inverse: true, show: false, data: bars.map((_, at) => at) },
    series: [{ type: 'bar', barWidth: 14, data: bars }],
  });
  const svg = chart.renderToSVGString();
  chart.dispose();
  return withSchemes(svg);
}

/** A line with the name of the work, and a bar for each of those who did it. */
function barsOf(work: string, of: Figures[string] = {}) {
  const unit = of[rows.FASTIFY]?.perSecond;
  if (unit === undefined) return [];
  const label = { show: true, position: 'right' as const, color: given('text'), fontSize: 12 };
  const name = { ...label, formatter: work, fontWeight: 'bold' as const, offset: [-6, 2] };
  const bars = CONTESTANTS.flatMap(({ name, colour }) => {
    const { perSecond } = of[name] ?? {};
    if (perSecond === undefined) return [];
    const formatter = `${rounded(perSecond)}/s  ${name}`;
    const itemStyle = { color: given(colour) };
    return [{ value: perSecond / unit, itemStyle, label: { ...label, formatter } }];
  });
  return [{ value: 0, label: name, itemStyle: { color: given('paper') } }, ...bars];
}

/** Colours as variables, of which a style says the values for light and for dark. */
function withSchemes(svg: string): string {
  const entries = Object.entries(COLOURS);
  const scheme = (of: 'light' | 'dark') =>
    `:root{${entries.map(([name, colour]) => `--${name}:${colour[of]}`).join(';')}}`;
  const style = `<style>${scheme('light')}@media (prefers-color-scheme:dark){${scheme('dark')}}</style>`;
  const painted = entries.reduce(
    (text, [name, colour]) => text.replaceAll(colour.given, `var(--${name})`),
    svg,
  );
  const still = painted
    .replace(/<style[^>]*>.*?<\/style>/gs, '') // ECharts' own is for the mouse
    .replace(/ (class|pointer-events)="[^"]*"/g, '');
  return still.replace(/<svg([^>]*>)/, `<svg role="img"$1<title>${TITLE}</title>${style}`);
}

if (import.meta.main) {
  const results = JSON.parse(await readFile(new URL('results.json', import.meta.url), 'utf8'));
  await writeFile(new URL('results.svg', import.meta.url), drawChart(results));
}
