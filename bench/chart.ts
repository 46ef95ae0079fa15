/** The picture of results.json: throughput and CPU time as ratios to Fastify + pg, by work and Node. */
import { comparison, type Results } from './report.ts';
import { DUELS } from './works.ts';

const STYLE = `
  svg{--paper:#fff;--text:#1f2328;--faint:#59636e;--bar0:#0a69da;--bar1:#7fb2f0}
  @media(prefers-color-scheme:dark){
    svg{--paper:#0d1117;--text:#e6edf3;--faint:#9198a1;--bar0:#4493f8;--bar1:#2a5a9c}
  }
  text{font:12px system-ui,sans-serif;fill:var(--text)} .faint{fill:var(--faint)} .bold{font-weight:600}
  .bar0{fill:var(--bar0)} .bar1{fill:var(--bar1)} line{stroke:var(--faint)}`;
const WIDTH = 860;
const PANEL = 250; // width of a panel's bars
const LEFT = { rate: 290, cpu: 590 }; // where the bars of the two panels begin
const HEAD = 76;
const BAR = 14;
const GAP = 12; // between works
const TITLE = 'passengers compared with Fastify + pg (= 1)';

export function drawChart(results: Results): string {
  const runs = Object.values(results);
  const works = Object.entries(DUELS).map(([name, { title }]) => ({
    title,
    ratios: runs.map(({ figures }) => ({ rate: 0, cpu: 0, ...comparison(figures[name]) })),
  }));
  const step = runs.length * BAR + GAP;
  const height = HEAD + works.length * step;
  const panels = (['rate', 'cpu'] as const).map((of) => {
    const left = LEFT[of];
    const most = Math.max(1, ...works.flatMap(({ ratios }) => ratios.map((one) => one[of])));
    const x = (value: number) => ((value / most) * (PANEL - 40)).toFixed(1);
    const bars = works.flatMap(({ ratios }, at) =>
      ratios.map((one, run) => {
        const y = HEAD + at * step + run * BAR;
        const value = one[of];
        return `<rect class="bar${run}" x="${left}" y="${y}" width="${x(value)}" height="${BAR - 2}"/>
<text x="${left + Number(x(value)) + 5}" y="${y + 10}">${value.toFixed(2)}</text>`;
      }),
    );
    const one = left + Number(x(1));
    return [...bars, `<line x1="${one}" x2="${one}" y1="${HEAD - 6}" y2="${height - GAP + 4}"/>`];
  });
  const names = works.map(({ title }, at) => {
    const y = HEAD + at * step + (runs.length * BAR) / 2 + 3;
    return `<text x="${LEFT.rate - 10}" y="${y}" text-anchor="end">${title}</text>`;
  });
  const legend = Object.keys(results).map((node, at) => {
    const x = 14 + at * 90;
    return `<rect class="bar${at}" x="${x}" y="34" width="12" height="12"/>
<text class="faint" x="${x + 18}" y="44">Node ${node}</text>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" role="img" width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}">
<title>${TITLE}</title><style>${STYLE}</style>
<rect width="${WIDTH}" height="${height}" fill="var(--paper)"/>
<text class="bold" x="14" y="22">${TITLE}</text>
${legend.join('\n')}
<text class="bold" x="${LEFT.rate}" y="62">requests per second, more is better</text>
<text class="bold" x="${LEFT.cpu}" y="62">CPU per request, less is better</text>
${[...names, ...panels.flat()].join('\n')}
</svg>
`;
}
