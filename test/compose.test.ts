/** compose.yaml, as far as it can be judged without an engine. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { parse } from 'yaml';
import { readConfig } from '../app.ts';

type Service = {
  image: string;
  build?: string;
  ports?: string[];
  environment: Record<string, string | null>;
  depends_on?: Record<string, { condition: string }>;
  healthcheck: { test: string[] };
  volumes?: string[];
  tmpfs?: string[];
  [name: string]: unknown;
};

const read = (path: string) => readFile(new URL(`../${path}`, import.meta.url), 'utf8');
const text = await read('compose.yaml');
const { services, volumes } = parse(text) as {
  services: Record<'service' | 'postgres', Service>;
  volumes: Record<string, unknown>;
};

/** Of docs.docker.com/reference/compose-file; the file was judged by compose-spec's schema, too. */
const KNOWN =
  `image build ports environment depends_on healthcheck read_only tmpfs cap_drop security_opt
  mem_limit stop_grace_period restart volumes shm_size stop_signal`.split(/\s+/);

/** Interpolates as Compose does; a variable that is required and missing throws. */
function interpolate(environment: Service['environment'], given: Record<string, string>) {
  const entries = Object.entries(environment).flatMap(([name, value]) => {
    if (value === null) return given[name] ? [[name, given[name]]] : [];
    const filled = value.replace(/\$\{(\w+):\?([^}]+)\}/g, (_, variable, message) => {
      if (!given[variable]) throw new Error(`${variable} ${message}`);
      return given[variable];
    });
    return [[name, filled]];
  });
  return Object.fromEntries(entries);
}

const dotenv = (env: string) =>
  Object.fromEntries([...env.matchAll(/^(\w+)=(.*)$/gm)].map(([, name, value]) => [name, value]));

test('every member of a service is one that Compose knows', () => {
  for (const service of Object.values(services)) {
    assert.deepEqual(
      Object.keys(service).filter((name) => !KNOWN.includes(name)),
      [],
    );
  }
});

test('.env.example without a password is an error that says what to do', async () => {
  const given = dotenv(await read('.env.example'));
  for (const { environment } of Object.values(services)) {
    assert.throws(
      () => interpolate(environment, given),
      /^Error: POSTGRES_PASSWORD is missing; cp/,
    );
    assert.throws(() => interpolate(environment, {}), /is missing; cp \.env\.example \.env/);
  }
  assert.doesNotMatch(text, /\$\{\w+(:?-|\})/, 'no secret has a default');
});

test('with a password the service takes its environment, and both mean the same database', async () => {
  const given = { ...dotenv(await read('.env.example')), POSTGRES_PASSWORD: 'p' };
  const mine = interpolate(services.service.environment, given);
  const theirs = interpolate(services.postgres.environment, given);
  const config = readConfig({ NODE_ENV: 'production', ...mine });
  assert.deepEqual(
    [config.PGHOST, config.AUTH, config.JWT_SECRET],
    ['postgres', 'none', undefined],
  );
  assert.deepEqual(
    [mine.PGUSER, mine.PGDATABASE, mine.PGPASSWORD],
    [theirs.POSTGRES_USER, theirs.POSTGRES_DB, theirs.POSTGRES_PASSWORD],
  );
  const secret = { ...given, AUTH: 'write', JWT_SECRET: 's'.repeat(32) };
  assert.equal(readConfig({ ...interpolate(services.service.environment, secret) }).AUTH, 'write');
});

test('8080 of the image is published, and no port of the database', async () => {
  assert.deepEqual(services.service.ports, ['8080:8080']);
  assert.equal(services.postgres.ports, undefined);
  assert.match(await read('Dockerfile'), /^EXPOSE 8080 8081$/m);
  assert.match(await read('nginx/passengers.conf'), /listen 8080 /);
});

test('the service waits for its database, and is healthy when /readyz says so', () => {
  assert.deepEqual(services.service.depends_on, { postgres: { condition: 'service_healthy' } });
  const { test: probe } = services.service.healthcheck;
  assert.deepEqual(probe.slice(0, 3), ['CMD', 'node', '-e']);
  assert.match(probe[3] ?? '', /127\.0\.0\.1:8081\/readyz/);
  new Function(probe[3] ?? ''); // it parses
});

test("PostgreSQL's data is on a named volume, where 18 wants it; the service writes to /tmp alone", () => {
  assert.deepEqual(services.postgres.volumes, ['database:/var/lib/postgresql']);
  assert.ok('database' in volumes);
  assert.match(services.postgres.image, /^postgres:18\b/);
  assert.deepEqual([services.service.read_only, services.service.tmpfs], [true, ['/tmp']]);
});
