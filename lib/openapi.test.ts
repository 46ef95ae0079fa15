/** Tests of the document: what it says of routes, and that its schemas say what is refused. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
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
  tags: string[];
  security: object[];
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

  test('are in the groups of the page, other paths last', () => {
    const shown = ['/things/count', '/hello', '/rest/v1/things', '/everything'];
    const groups = ['things', 'service', 'PostgREST', 'other paths'];
    assert.deepEqual(
      api.tags.map(({ name }) => name),
      groups,
    );
    assert.deepEqual(
      shown.flatMap((path) => paths[path]?.get?.tags),
      groups,
    );
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
    for (const { responses } of operations) {
      assert.equal(responses['4XX']?.$ref, '#/components/responses/Problem');
      assert.equal(responses['5XX']?.$ref, '#/components/responses/Failure');
    }
    const { Problem, Failure } = api.components.responses;
    const statuses = [Problem, Failure].map(
      (one) => one?.content['application/problem+json'].example.status,
    );
    assert.deepEqual(statuses, [404, 503]);
  });

  test('of a table refer to the headers of its answers, others to none', () => {
    const { 206: part } = paths['/things']?.get?.responses ?? {};
    const names = ['ETag', 'Location', 'Content-Range', 'Link', 'Preference-Applied'];
    assert.deepEqual(Object.keys(part?.headers ?? {}), names);
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
    const { name, price, seen } = types('Row');
    assert.deepEqual([name?.type, seen?.format], ['string', 'date']);
    assert.deepEqual(price?.anyOf, [{ type: 'number', minimum: 0, maximum: 10 }, { type: 'null' }]);
    assert.deepEqual(schemas['things.Row']?.required, things.names);
  });

  test('of a selected row require no member', () => {
    assert.deepEqual(types('Selected'), types('Row'));
    assert.equal(schemas['things.Selected']?.required, undefined);
  });

  test('of a body have what is settable, and require what has no default', () => {
    assert.deepEqual(Object.keys(types('NewRow')), ['id', ...things.settable]);
    const required = ['name', 'size', 'old', 'maker', 'made'];
    assert.deepEqual(schemas['things.NewRow']?.required, required);
    assert.equal(schemas['things.Part']?.required, undefined);
    assert.equal('seen' in types('NewRow'), false);
  });

  test('of a new row require a key that the body gives, as the example does', () => {
    const codes = resource({
      path: 'codes',
      table: 'codes',
      key: 'code',
      columns: { code: text(3) },
    });
    const create = () => {};
    documentTable(codes, { create });
    const route = { method: 'POST', path: '/codes', handler: create };
    const about = { title: 'x', version: '1', base: '', secured: () => false };
    const document = JSON.stringify(openapi([route], [codes], about));
    assert.match(document, /"required":\["code"\]\},"codes.Part"/);
    assert.match(document, /"one":\{"value":\{"code":"som"\}\}/);
  });

  test('of a body have the rules of the validator', () => {
    const { id, name, made, ...others } = types('NewRow');
    assert.deepEqual([id?.format, made?.format, name?.maxLength], ['uuid', 'date', 5]);
    assert.deepEqual(others, {
      size: { type: 'integer', minimum: 1, maximum: 3 },
      price: {
        default: null,
        anyOf: [{ type: 'number', minimum: 0, maximum: 10 }, { type: 'null' }],
      },
      kind: { default: 'a', type: 'string', enum: ['a', 'b'] },
      old: { type: 'boolean' },
      maker: { type: 'string', format: 'uuid' },
    });
    const allowed = ['', ' ', '\u00a0', 'a\0', ' a\n', '🚢'].filter((text) =>
      new RegExp(String(name?.pattern), 'u').test(text),
    );
    assert.deepEqual(allowed, [' a\n', '🚢']);
  });
});

test('pageFile() has no other file of its package', () => {
  return assert.rejects(pageFile('package.json'), { status: 404 });
});
