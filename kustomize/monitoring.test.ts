/**
 * Evaluates the alerts of components/monitoring with promtool (Debian: prometheus), also on the
 * metrics of a run that loses its database, and checks that every query names metrics that exist.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { parse, stringify } from 'yaml';
import { startDatabase, startProxy, startReady } from '../test/harness.ts';

type Rule = { alert: string; expr: string; labels: object; annotations?: object };
type Series = { series: string; values: string };

const read = (name: string) =>
  readFileSync(new URL(`./components/monitoring/${name}`, import.meta.url), 'utf8');
const { groups } = parse(read('prometheusrule.yaml')).spec;
const rules: Rule[] = groups[0].rules;
const skip = !process.env.CI && spawnSync('promtool', ['--version']).error && 'promtool is missing';

/** Not exported by the service: of Prometheus, of kube-state-metrics, and of its next release. */
const ELSEWHERE = /^(up|kube_\w+)$/;

const NAMESPACE = { namespace: 'passengers' };
const POD = { ...NAMESPACE, pod: 'passengers-0' };
const JOB = { ...POD, job: 'passengers-metrics' };
const KUBE = { ...NAMESPACE, deployment: 'passengers', cronjob: 'backup' };
const MINUTES = 15; // of each phase, healthy and faulty; longer than every `for` and range

/** One sample a minute: first value and step while all is healthy, and both during the fault. */
function series(name: string, labels: object, healthy: number[], fault: number[]): Series {
  const list = Object.entries(labels).map(([label, value]) => `${label}="${value}"`);
  const values = [healthy, fault].map(([from, step]) => `${from}+${step}x${MINUTES - 1}`);
  return { series: `${name}{${list}}`, values: values.join(' ').replaceAll('+-', '-') };
}

function gauge(name: string, labels: object, healthy: number, fault: number): Series {
  return series(name, labels, [healthy, 0], [fault, 0]);
}

function bucket(le: string, step: number): Series {
  return series('http_request_duration_seconds_bucket', { ...JOB, le }, [0, 60], [900, step]);
}

/** Three scrapes as series: between the first two all was healthy, before the third was the fault. */
function record(scrapes: string[]): Series[] {
  const [first, second, third] = scrapes.map(
    (text) =>
      new Map([...text.matchAll(/^([a-z]\S*) (\S+)$/gm)].map(([, it, value]) => [it, value])),
  );
  return [...third!.keys()].map((sample = '') => {
    const [, name = '', list = ''] = /^(\w+)(?:\{(.*)\})?/.exec(sample) ?? [];
    const own = [...list.matchAll(/(\w+)="(.*?)"/g)].map(([, label, value]) => [label, value]);
    const [a = 0, b = 0, c = 0] = [first, second, third].map((it) => Number(it!.get(sample) ?? 0));
    const labels = { ...Object.fromEntries(own), ...JOB };
    if (scrapes[0]!.includes(`# TYPE ${name} gauge`)) return gauge(name, labels, b, c);
    return series(name, labels, [a, b - a], [a + (b - a) * MINUTES, c - b]);
  });
}

/** Alert, the labels beside its severity, and the series that let it fire. */
const FIRES: [string, object, Series[]][] = [
  ['PassengersDatabase', NAMESPACE, [gauge('db_up', JOB, 1, 0)]],
  ['PassengersReadOnly', NAMESPACE, [gauge('db_read_only', JOB, 0, 1)]],
  ['PassengersSlow', NAMESPACE, [bucket('1', 0), bucket('5', 60), bucket('+Inf', 60)]],
  [
    'PassengersNotReady',
    KUBE,
    [
      gauge('kube_deployment_status_replicas_ready', KUBE, 2, 1),
      gauge('kube_deployment_spec_replicas', KUBE, 2, 2),
    ],
  ],
  ['PassengersGone', {}, [gauge('up', JOB, 1, 0)]],
  ['PassengersPoolSaturated', POD, [gauge('db_statements_waiting', JOB, 0, 20)]],
  [
    'PassengersStorage',
    NAMESPACE,
    [series('db_errors_total', { ...JOB, class: '53' }, [0, 0], [0, 5])],
  ],
  ['PassengersRestarts', JOB, [series('process_start_time_seconds', JOB, [1, 0], [2, 1])]],
  [
    'PassengersBackup',
    NAMESPACE,
    [gauge('kube_cronjob_status_last_successful_time', KUBE, 0, -130_000)],
  ],
];

describe('alerts', { skip }, () => {
  const directory = mkdtempSync(join(tmpdir(), 'passengers monitoring-'));
  const scrapes: string[] = [];

  before(async () => {
    const database = await startDatabase();
    const proxy = await startProxy(database.url);
    const service = await startReady({ DATABASE_URL: proxy.url, AUTH: 'none' });
    const ask = () =>
      Promise.all(Array.from({ length: 20 }, () => service.get('/passengers?limit=1')));
    const scrape = async () => scrapes.push((await service.get('/metrics')).text);
    await scrape();
    await ask();
    await scrape();
    proxy.refuse();
    await ask();
    await scrape();
    await service.stop();
    await proxy.stop();
    await database.stop();
    const bare = rules.map(({ annotations, ...rule }) => rule); // promtool compares them otherwise
    writeFileSync(join(directory, 'all.yaml'), stringify({ groups }));
    writeFileSync(
      join(directory, 'bare.yaml'),
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
    const up = given.some((it) => it.series.startsWith('up{')) ? [] : [gauge('up', JOB, 1, 1)];
    const all = { interval: '1m', input_series: [...given, ...up], alert_rule_test: alerts };
    const file = join(directory, 'test.yaml');
    writeFileSync(
      file,
      stringify({ rule_files: ['bare.yaml'], evaluation_interval: '1m', tests: [all] }),
    );
    const { status, stdout, stderr } = spawnSync('promtool', ['test', 'rules', file]);
    assert.equal(status, 0, `${stdout}${stderr}`);
  }

  test('a recorded run that loses its database fires PassengersErrors and PassengersDatabase', () => {
    evaluate(record(scrapes), { PassengersErrors: NAMESPACE, PassengersDatabase: NAMESPACE });
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
    const panels: { targets: Rule[] }[] = JSON.parse(read('dashboard.json')).panels;
    const shown = panels.flatMap(({ targets }) => targets);
    for (const { expr } of [...shown, ...rules]) {
      const names = [...expr.matchAll(/\b(\w+)\{/g)].map(([, name = '']) => name);
      const exported = (name: string) => ELSEWHERE.test(name) || scrapes[0]!.includes(`\n${name}`);
      assert.ok(names.length > 0 && names.every(exported), expr);
      const jobs = [...expr.matchAll(/\bjob="([^"]+)/g)].map(([, job]) => job);
      assert.ok(
        jobs.every((job) => job === parse(read('service.yaml')).metadata.name),
        expr,
      );
    }
  });
});
