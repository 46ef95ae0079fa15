/**
 * Evaluates the alerts of components/monitoring with promtool (Debian: prometheus), on the metrics of
 * a run that loses its database, and checks that every query names metrics that exist.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { parse, stringify } from 'yaml';
import { startDatabase, startProxy, startReady } from '../test/harness.ts';

type Rule = { alert: string; expr: string; labels: object; annotations?: Record<string, string> };
type Series = { series: string; values: string };

const COMPONENT = new URL('./components/monitoring/', import.meta.url);
const { groups } = parse(readFileSync(new URL('prometheusrule.yaml', COMPONENT), 'utf8')).spec;
const dashboard = readFileSync(new URL('dashboard.json', COMPONENT), 'utf8');
const rules: Rule[] = groups[0].rules;
const skip = !process.env.CI && spawnSync('promtool', ['--version']).error && 'promtool is missing';

/** Exported by Prometheus and kube-state-metrics. */
const ELSEWHERE = /^(up|kube_\w+)$/;
/** Exported by the service from the release on that answers /healthz/database. */
const NEXT = 'db_up';

const OURS = 'job="passengers-metrics",namespace="passengers",pod="passengers-0"';
const KUBE = 'namespace="passengers",deployment="passengers",cronjob="backup"';
const MINUTES = 15; // of each phase, healthy and faulty; longer than every `for` and range

/** A series of one sample a minute, which goes on by `step` until the fault, and then by another. */
function series(
  name: string,
  labels: string,
  [first, step]: number[],
  [fault, on]: number[],
): Series {
  const values = `${first}+${step}x${MINUTES - 1} ${fault}+${on}x${MINUTES - 1}`;
  return { series: `${name}{${labels}}`, values: values.replaceAll('+-', '-') };
}

/** Three scrapes as series: the first two healthy, the third during the fault. */
function record([start = '', healthy = '', fault = '']: string[]): Series[] {
  const [a, b, c] = [start, healthy, fault].map(
    (text) =>
      new Map(
        [...text.matchAll(/^([a-z]\S*) (\S+)$/gm)].map(([, it, value]) => [it, Number(value)]),
      ),
  );
  return [...c!].map(([sample = '', last]) => {
    const [, name = '', labels] = /^(\w+)(?:\{(.*)\})?/.exec(sample) ?? [];
    const [first, middle] = [a!.get(sample) ?? 0, b!.get(sample) ?? 0];
    const all = labels ? `${labels},${OURS}` : OURS;
    if (start.includes(`# TYPE ${name} gauge`)) return series(name, all, [middle, 0], [last, 0]);
    const reached = first + (middle - first) * MINUTES;
    return series(name, all, [first, middle - first], [reached, last - middle]);
  });
}

const bucket = (le: string, after: number) =>
  series('http_request_duration_seconds_bucket', `le="${le}",${OURS}`, [0, 60], [900, after]);

/** Alert, the labels beside its severity, and the series that let it fire. */
const FIRES: [string, object, Series[]][] = [
  ['PassengersDatabase', { namespace: 'passengers' }, [series('db_up', OURS, [1, 0], [0, 0])]],
  [
    'PassengersSlow',
    { namespace: 'passengers' },
    [bucket('1', 0), bucket('5', 60), bucket('+Inf', 60)],
  ],
  [
    'PassengersNotReady',
    { namespace: 'passengers', deployment: 'passengers', cronjob: 'backup' },
    [
      series('kube_deployment_status_replicas_ready', KUBE, [2, 0], [1, 0]),
      series('kube_deployment_spec_replicas', KUBE, [2, 0], [2, 0]),
    ],
  ],
  ['PassengersGone', {}, [series('up', OURS, [1, 0], [0, 0])]],
  [
    'PassengersPoolSaturated',
    { namespace: 'passengers', pod: 'passengers-0' },
    [series('db_statements_waiting', OURS, [0, 0], [20, 0])],
  ],
  [
    'PassengersRestarts',
    { job: 'passengers-metrics', namespace: 'passengers', pod: 'passengers-0' },
    [series('process_start_time_seconds', OURS, [1, 0], [2, 1])],
  ],
  [
    'PassengersBackup',
    { namespace: 'passengers' },
    [series('kube_cronjob_status_last_successful_time', KUBE, [0, 0], [-130_000, 0])],
  ],
];

describe('alerts', { skip }, () => {
  const directory = mkdtempSync(join(tmpdir(), 'passengers monitoring-'));
  const scrapes: string[] = [];

  before(async () => {
    const database = await startDatabase();
    const proxy = await startProxy(database.url);
    const service = await startReady({ DATABASE_URL: proxy.url, AUTH: 'none' });
    const scrape = async () => scrapes.push((await service.get('/metrics')).text);
    const ask = () =>
      Promise.all(Array.from({ length: 20 }, () => service.get('/passengers?limit=1')));
    await scrape();
    await ask();
    await scrape();
    proxy.refuse();
    await ask();
    await scrape();
    await service.stop();
    await proxy.stop();
    await database.stop();
    const bare = rules.map(({ annotations, ...rule }) => rule);
    writeFileSync(join(directory, 'all.yaml'), stringify({ groups }));
    writeFileSync(
      join(directory, 'rules.yaml'),
      stringify({ groups: [{ name: 'x', rules: bare }] }),
    );
  });

  after(() => rmSync(directory, { recursive: true }));

  /** Fails unless exactly these alerts fire at the end, and none while all was healthy. */
  function evaluate(given: Series[], firing: Record<string, object>): void {
    const at = (minute: number, names: Record<string, object>) =>
      rules.map(({ alert, labels }) => {
        const expected = names[alert] ? [{ exp_labels: { ...labels, ...names[alert] } }] : [];
        return { eval_time: `${minute}m`, alertname: alert, exp_alerts: expected };
      });
    const alerts = [...at(MINUTES - 1, {}), ...at(2 * MINUTES - 1, firing)];
    const isUp = given.some((it) => it.series.startsWith('up{'));
    const all = isUp ? given : [...given, series('up', OURS, [1, 0], [1, 0])];
    const tests = [{ interval: '1m', input_series: all, alert_rule_test: alerts }];
    const file = join(directory, 'test.yaml');
    writeFileSync(
      file,
      stringify({ rule_files: ['rules.yaml'], evaluation_interval: '1m', tests }),
    );
    const { status, stdout, stderr } = spawnSync('promtool', ['test', 'rules', file]);
    assert.equal(status, 0, `${stdout}${stderr}`);
  }

  test('a recorded run that loses its database fires PassengersErrors and PassengersSlow', () => {
    const labels = { namespace: 'passengers' };
    evaluate(record(scrapes), { PassengersErrors: labels, PassengersSlow: labels });
  });

  for (const [alert, labels, given] of FIRES) {
    test(`${alert} fires, and only it`, () => evaluate(given, { [alert]: labels }));
  }

  test('each has a summary and an action whose templates promtool accepts, and a test', () => {
    execFileSync('promtool', ['check', 'rules', join(directory, 'all.yaml')]);
    for (const { alert, annotations } of rules) {
      assert.deepEqual(Object.keys(annotations ?? {}), ['summary', 'action'], alert);
    }
    const tested = [...FIRES.map(([alert]) => alert), 'PassengersErrors'];
    assert.deepEqual(rules.map(({ alert }) => alert).sort(), tested.sort());
  });

  test('every query names metrics that exist, of the job that the Service names', () => {
    const { panels } = JSON.parse(dashboard);
    const shown: string[] = panels.flatMap(({ targets }: { targets: Rule[] }) =>
      targets.map(({ expr }) => expr),
    );
    const queries = [...shown, ...rules.map(({ expr }) => expr)];
    const exported = scrapes.join('\n');
    for (const query of queries) {
      const names = [...query.matchAll(/\b(\w+)\{/g)].map(([, name = '']) => name);
      const missing = names.filter(
        (name) => !ELSEWHERE.test(name) && name !== NEXT && !exported.includes(`\n${name}`),
      );
      assert.deepEqual([names.length > 0, missing], [true, []], query);
    }
    const jobs = [...`${queries}`.matchAll(/\bjob="([^"]+)/g)].map(([, job]) => job);
    const service = parse(readFileSync(new URL('service.yaml', COMPONENT), 'utf8'));
    assert.deepEqual([...new Set(jobs)], [service.metadata.name]);
  });
});
