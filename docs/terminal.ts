/** Draws docs/terminal.svg from a real run of two commands: node --import tsx docs/terminal.ts */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const COLUMNS = 104;
const [CHARACTER, LINE] = [7.83, 18]; // px, at a font size of 13 px

const directory = mkdtempSync(join(tmpdir(), 'terminal-'));
chmodSync(directory, 0o755); // else root keeps the data elsewhere
const env = { ...process.env, DATA_DIR: join(directory, '.data'), DATABASE_URL: '' };
const service = spawn('npm', ['start'], { env, detached: true });
let printed = '';
for (const stream of [service.stdout, service.stderr])
  stream.on('data', (data) => {
    printed += data;
  });
const ended = once(service, 'exit');
const deadline = Date.now() + 60_000;
while (!printed.includes('On a PostgreSQL of your own')) {
  if (service.exitCode !== null || Date.now() > deadline) throw new Error(printed);
  await new Promise((resolve) => setTimeout(resolve, 50));
}
const shown = printed.replaceAll(`${directory}/`, '').trimEnd();
const url = 'http://127.0.0.1:8000/passengers?select=name,age&order=age.desc&limit=2';
const answer = execFileSync('curl', ['-s', url], { encoding: 'utf8' });
process.kill(-(service.pid ?? 0), 'SIGINT'); // as Ctrl-C does, to npm and the service
await ended;
rmSync(directory, { recursive: true });

const lines = [`$ npm start`, ...shown.split('\n'), '', `$ curl '${url}'`, answer].flatMap(
  (line) => (line === '' ? [''] : (line.match(new RegExp(`.{1,${COLUMNS}}`, 'g')) ?? [])),
);
const toXml = (text: string) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
const rows = lines.flatMap((line, at) => {
  if (line === '') return [];
  const place = `x="16" y="${(at + 2) * LINE}"`;
  return `  <text ${place}${line.startsWith('$') ? ' class="typed"' : ''}>${toXml(line)}</text>`;
});
const [width, height] = [Math.ceil(COLUMNS * CHARACTER + 32), (lines.length + 2) * LINE];
// An image in a page follows the reader's colour scheme, not the page's: it brings its background.
writeFileSync(
  new URL('terminal.svg', import.meta.url),
  `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" role="img" aria-label="npm start and a request in a terminal">
  <style>
    text { font: 13px ui-monospace, Menlo, Consolas, monospace; white-space: pre; fill: #24292f }
    .typed { font-weight: bold; fill: #0550ae }
    rect { fill: #f6f8fa; stroke: #8c959f }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .typed { fill: #79c0ff }
      rect { fill: #161b22 }
    }
  </style>
  <rect x="0.5" y="0.5" width="${width - 1}" height="${height - 1}" rx="8"/>
${rows.join('\n')}
</svg>
`,
);
