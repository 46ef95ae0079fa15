/** The picture of results.json: `node bench/chart.ts` draws it anew. Bars by ECharts, without a DOM. */
import { readFile, writeFile } from 'node:fs/promises';
import * as echarts from 'echarts';
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
const WIDTH = 860;
const HEIGHT = 620;

/** The rates as bars in units of Fastify's, each labelled with its requests per second. */
export function drawChart({ figures, machine, date, quick }: Results): string {
  const chart = echarts.init(null, null, {
    renderer: 'svg',
    ssr: true,
    width: WIDTH,
    height: HEIGHT,
  });
  const measured = WORKS.filter((work) => figures[work]?.[rows.FASTIFY]);
  const series = CONTESTANTS.map(({ name, colour }) => ({
    name,
    type: 'bar' as const,
    barGap: '12%',
    barCategoryGap: '34%',
    itemStyle: { color: given(colour) },
    data: measured.map((work) => barOf(figures[work]?.[name], figures[work]?.[rows.FASTIFY])),
  }));
  const { cpu, cores, node, postgres } = machine;
  const subtext = `${cores} cores of ${cpu} for service, database and load together · Node ${node} · PostgreSQL ${postgres} · ${date.slice(0, 10)}${quick ? ' · quick run' : ''}`;
  const [text, faint] = [{ color: given('text') }, { color: given('faint') }];
  chart.setOption({
    animation: false,
    backgroundColor: given('paper'),
    textStyle: { fontFamily: 'system-ui, sans-serif' },
    title: {
      text: 'Requests per second, one process each, in units of Fastify + pg',
      subtext,
      left: 16,
      top: 10,
      textStyle: { ...text, fontSize: 16 },
      subtextStyle: { ...faint, fontSize: 12 },
    },
    legend: { top: 62, left: 16, textStyle: text, itemWidth: 14, itemHeight: 10 },
    grid: { left: 16, right: 70, top: 96, bottom: 16, containLabel: true },
    xAxis: {
      type: 'value',
      axisLabel: { ...faint, formatter: '{value} x' },
      splitLine: { lineStyle: { color: given('line') } },
    },
    yAxis: {
      type: 'category',
      inverse: true,
      data: measured.map((work) => work.replace(/, /, ',\n')),
      axisLabel: { ...text, fontSize: 12 },
      axisLine: { lineStyle: { color: given('line') } },
      axisTick: { show: false },
    },
    series,
  });
  const svg = chart.renderToSVGString();
  chart.dispose();
  return withSchemes(svg);
}

type Rate = { perSecond: number } | undefined;

function barOf(rate: Rate, unit: Rate) {
  if (!rate || !unit) return null;
  const label = {
    show: true,
    position: 'right' as const,
    formatter: `${rounded(rate.perSecond)}/s`,
    color: given('text'),
    fontSize: 11,
  };
  return { value: rate.perSecond / unit.perSecond, label };
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
  return painted.replace(/(<svg[^>]*>)/, `$1${style}`);
}

if (import.meta.main) {
  const results = JSON.parse(await readFile(new URL('results.json', import.meta.url), 'utf8'));
  await writeFile(new URL('results.svg', import.meta.url), drawChart(results));
}
