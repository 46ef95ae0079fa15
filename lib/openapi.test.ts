/** Tests of the document: what it says of routes, and that its schemas say what is refused. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { boolean, date, integer, number, oneOf, resource, text, uuid } from './columns.ts';
import { documented, documentTable, openapi, pageFile } from './openapi.ts';

const things = resource({
  path: 'things',
  table: 'things',
  key: 'id',
  columns: {
    name: text(5),
    size: integer(1, 3),
    price: number(0, 10, { nullable: true }),
    kind: oneOf(['a', 'b'], { default: 'a' }),
    old: boolean(),
    maker: uuid(),
    made: date(),
    seen: date({ generated: () => 'now()' }),
  },
});
const KEY = '0192f0c1-2f3a-7bcd-8123-456789abcdef';
const MAKER = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11';
const EXAMPLE = {
  ...{ name: 'some text', size: 1, price: 0, kind: 'a', old: true },
  ...{ maker: MAKER, made: '2026-01-31' },
};
const MANY = ['list', 'listAll', 'create', 'mergeMany', 'removeMany'];
const NAMES = [...MANY, 'read', 'replace', 'merge', 'remove'];
const handlers = Object.fromEntries(NAMES.map((name) => [name, () => name]));
documentTable(things, handlers);

const ROUTES: [string, string, string][] = [
  ['GET', '/everything', 'listAll'],
  ['GET', '/things', 'list'],
  ['POST', '/things', 'create'],
  ['PATCH', '/things', 'mergeMany'],
  ['DELETE', '/things', 'removeMany'],
  ['GET', '/things/:key', 'read'],
  ['PUT', '/things/:key', 'replace'],
  ['PATCH', '/things/:key', 'merge'],
  ['DELETE', '/things/:key', 'remove'],
  ['GET', '/rest/v1/things', 'list'],
];
const own = documented({ summary: 'Count', tag: 'things', example: { count: 1 } }, () => {});
const routes = [
  ...ROUTES.map(([method, path, name]) => ({
    method,
    path: `/base${path}`,
    handler: handlers[name],
  })),
  ...['', '/hello', '/metrics', '/docs/:file', '/unknown'].map((path) => {
    return { method: 'GET', path: `/base${path}`, handler: () => {} };
  }),
  { method: 'GET', path: '/base/things/count', handler: own },
  { method: 'GET', path: '/healthz', handler: () => {} }, // below no base
  { method: 'ALL', path: '/base/*', handler: () => {} },
];

/** As much of a document as is looked at here. */
type Operation = {
  summary: string;
  description: string;
  tags: string[];
  security: object[];
  operationId: string;
  parameters: { $ref?: string }[];
  responses: Record<string, { $ref?: string; headers?: object; content?: Record<string, object> }>;
};
type Schema = { required?: string[]; properties: Record<string, Record<string, unknown>> };

function documentOf(needsToken = false) {
  const about = { title: 'things', version: '1', base: '/base', secured: () => needsToken };
  return openapi(routes, [things], about);
}
const api = documentOf();
const paths = api.paths as Record<string, Record<string, Operation>>;
const schemas = api.components.schemas as Record<string, Schema>;
const operations = Object.values(paths).flatMap((methods) => Object.values(methods));

describe('operations', () => {
  test('are those of the documented routes below the base', () => {
    const found = Object.entries(paths).map(([path, one]) => `${path} ${Object.keys(one)}`);
    assert.deepEqual(found.sort(), [
      '/ get',
      '/docs/{file} get',
      '/everything get',
      '/hello get',
      '/metrics get',
      '/rest/v1/things get',
      '/things get,post,patch,delete',
      '/things/count get',
      '/things/{key} get,put,patch,delete',
    ]);
  });

  test('have a summary, a description and an id of their own', () => {
    for (const { summary, description } of operations) assert.ok(summary && description);
    const ids = new Set(operations.map(({ operationId }) => operationId));
    assert.equal(ids.size, operations.length);
    assert.equal(paths['/things/{key}']?.get?.operationId, 'get_things_key');
  });

  test('are in the groups of the page, other paths last', () => {
    const groups = api.tags.map(({ name }) => name);
    assert.deepEqual(groups, ['things', 'service', 'PostgREST', 'other paths']);
    assert.deepEqual(paths['/things']?.get?.tags, ['things']);
    assert.deepEqual(paths['/things/count']?.get?.tags, ['things']);
    assert.deepEqual(paths['/rest/v1/things']?.get?.tags, ['PostgREST']);
    assert.deepEqual(paths['/hello']?.get?.tags, ['service']);
    assert.deepEqual(paths['/everything']?.get?.tags, ['other paths']);
  });

  test('want a token where one is needed', () => {
    const keyed = documentOf(true);
    const secured = keyed.paths as typeof paths;
    assert.equal(keyed.components.securitySchemes?.bearer.scheme, 'bearer');
    assert.deepEqual(secured['/things']?.get?.security, [{ bearer: [] }]);
    assert.deepEqual(secured['/metrics']?.get?.security, [{ bearer: [] }]);
    assert.deepEqual(secured['/hello']?.get?.security, []);
    assert.deepEqual(paths['/things']?.get?.security, []);
    assert.equal(api.components.securitySchemes, undefined);
  });

  test('have every failure by reference, with an example that can be', () => {
    for (const [range, name, status] of [
      ['4XX', 'Problem', 404],
      ['5XX', 'Failure', 503],
    ] as const) {
      for (const { responses } of operations)
        assert.equal(responses[range]?.$ref, `#/components/responses/${name}`);
      const media = api.components.responses[name]?.content['application/problem+json'];
      assert.equal(media?.example.status, status);
    }
  });

  test('of a table refer to the headers of its answers, others to none', () => {
    const names = ['ETag', 'Location', 'Content-Range', 'Link', 'Preference-Applied'];
    assert.deepEqual(Object.keys(api.components.headers), names);
    assert.deepEqual(Object.keys(paths['/things']?.get?.responses[206]?.headers ?? {}), names);
    assert.deepEqual(paths['/hello']?.get?.responses[200]?.headers, {});
  });

  test('of a list have its parameters', () => {
    const list = JSON.stringify(paths['/things']?.get?.parameters);
    for (const name of ['things.column.id', 'or', 'Range', 'Range-Unit', 'Prefer'])
      assert.match(list, new RegExp(`/${name}"`));
  });

  test('have a filter for each column with the operators of its type', () => {
    const { 'things.column.size': size, 'things.column.name': name } = api.components.parameters;
    assert.match('eq.1', new RegExp(size.schema.pattern));
    assert.match('not.eq(any).{1}', new RegExp(size.schema.pattern));
    assert.doesNotMatch('like.1', new RegExp(size.schema.pattern));
    assert.match('like.1', new RegExp(name.schema.pattern));
    assert.deepEqual(
      [size.schema.examples, size.description],
      [['eq.1'], 'Is a whole number from 1 to 3'],
    );
  });
});

describe('schemas', () => {
  const types = (name: string) => schemas[`things.${name}`]?.properties ?? {};

  test('of an answered row have null only where the column has it', () => {
    const { id, name, price, seen } = types('Row');
    assert.deepEqual(id, { type: 'string', format: 'uuid' });
    assert.equal(name?.type, 'string');
    assert.deepEqual(price?.anyOf, [{ type: 'number', minimum: 0, maximum: 10 }, { type: 'null' }]);
    assert.equal(seen?.format, 'date');
    assert.deepEqual(schemas['things.Row']?.required, things.names);
  });

  test('of a selected row require no member', () => {
    assert.deepEqual(types('Selected'), types('Row'));
    assert.equal(schemas['things.Selected']?.required, undefined);
  });

  test('of a body have what is settable, and require what has no default', () => {
    assert.deepEqual(Object.keys(types('NewRow')), ['id', ...Object.keys(EXAMPLE)]);
    const required = ['name', 'size', 'old', 'maker', 'made'];
    assert.deepEqual(schemas['things.NewRow']?.required, required);
    assert.equal(schemas['things.Part']?.required, undefined);
    assert.equal('seen' in types('NewRow'), false);
  });

  /** Values that a schema allows, with emphasis on what is near to its ends. */
  function valuesOf({ type, anyOf, ...schema }: Record<string, unknown>): fc.Arbitrary<unknown> {
    const { minimum: min = 0, maximum: max = 0 } = schema as { minimum?: number; maximum?: number };
    if (anyOf) return fc.oneof(...(anyOf as Record<string, unknown>[]).map(valuesOf));
    if (type === 'null') return fc.constant(null);
    if (type === 'boolean') return fc.boolean();
    if (type === 'integer') return fc.integer({ min, max });
    if (type === 'number') return fc.double({ min, max, noNaN: true });
    if (schema.enum) return fc.constantFrom(...(schema.enum as string[]));
    if (schema.format === 'uuid')
      return fc.uuid().map((one) => (one < '8' ? one.toUpperCase() : one));
    if (schema.format === 'date')
      return fc
        .date({ min: new Date('0001-01-01'), max: new Date('9999-12-31'), noInvalidDate: true })
        .map((day) => day.toISOString().slice(0, 10));
    const pattern = new RegExp(String(schema.pattern), 'u');
    const characters = fc.oneof(
      fc.constantFrom(' ', '\u00a0', '\0', '\n'),
      fc.string({ unit: 'binary' }),
    );
    return fc
      .array(characters, { maxLength: 4 })
      .map((parts) => parts.join(''))
      .filter((one) => pattern.test(one) && [...one].length <= Number(schema.maxLength));
  }

  test('allow nothing that the validator refuses', () => {
    const properties = Object.entries(types('NewRow')).map(([name, one]) => [name, valuesOf(one)]);
    const requiredKeys = (schemas['things.NewRow']?.required ?? []) as never[];
    const bodies = fc.record(Object.fromEntries(properties), { requiredKeys });
    fc.assert(
      fc.property(bodies, (body) => assert.deepEqual(things.row.safeParse(body).error, undefined)),
      { numRuns: 400 },
    );
  });

  test('are those of the bodies that are shown, and those are valid', () => {
    const { id, name } = { id: KEY, name: 'some' };
    assert.ok(things.row.safeParse({ id, ...EXAMPLE, name }).success);
    const post = paths['/things']?.post as {
      requestBody?: { content: Record<string, { examples: object }> };
    };
    assert.deepEqual(post.requestBody?.content['application/json']?.examples, {
      one: { value: EXAMPLE },
      many: { value: [EXAMPLE] },
    });
  });
});

describe('the page', () => {
  for (const name of ['package.json', 'toString', '../app.ts', ''])
    test(`"${name}" is no file of it`, () => assert.rejects(pageFile(name), { status: 404 }));
});
