import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { z } from 'zod';
import { Problem, problemAnswer, toFaults, toProblem, unprocessable } from './problem.ts';

const failure = (code: string, members: object = {}) =>
  Object.assign(new Error(`text of ${code}`), { code, ...members });

describe('toProblem()', () => {
  const codes: [code: string, status: number, problemCode?: string][] = [
    ['23505', 409], // unique_violation
    ['23503', 409], // foreign_key_violation
    ['22P02', 400], // invalid_text_representation
    ['23514', 400], // check_violation
    ['42883', 400], // undefined_function
    ['42501', 403], // insufficient_privilege
    ['57014', 504], // query_canceled
    ['40001', 503, '08006'], // serialization_failure
    ['55P03', 503, '08006'], // lock_not_available
    ['25006', 503, '08006'], // read_only_sql_transaction
    ['53300', 503, '08006'], // too_many_connections
    ['57P01', 503, '08006'], // admin_shutdown
    ['08006', 503], // connection_failure
    ['3D000', 503, '08006'], // invalid_catalog_name
    ['ECONNRESET', 503, '08006'],
    ['CONNECT_TIMEOUT', 503, '08006'],
    ['42703', 503, '08006'], // undefined_column: the dialect refuses unknown ones
    ['42P01', 503, '08006'], // undefined_table
    ['0A000', 501], // feature_not_supported
    ['54001', 400], // statement_too_complex
    ['23001', 409], // restrict_violation
    ['ERR_INVALID_ARG_TYPE', 500, 'XX000'],
  ];
  for (const [code, status, problemCode = code] of codes) {
    test(`${code} is ${status} ${problemCode}`, () => {
      const problem = toProblem(failure(code));
      assert.deepEqual([problem.status, problem.code], [status, problemCode]);
      const isShown = /^(400|409|501)$/.test(`${status}`);
      assert.equal(problem.message === `text of ${code}`, isShown);
    });
  }

  const anything: [string, unknown][] = [
    ['an error without a code', new TypeError('x is not a function')],
    ['text', 'x'],
  ];
  for (const [name, thrown] of anything) {
    test(`${name} is 500 without its message`, () => {
      const { status, message } = toProblem(thrown);
      assert.equal(status, 500);
      assert.match(message, /^Internal error; the log has it/);
    });
  }

  test('a Problem stays as it is', () => {
    const problem = new Problem(406, 'PGRST107', 'detail');
    assert.equal(toProblem(problem), problem);
  });

  test('503 has Retry-After', () => {
    assert.deepEqual(toProblem(failure('57P01')).extras.headers, { 'Retry-After': '1' });
  });

  const missing = 'Key (age)=(is still "x") is not present in table "ages".';
  const referenced = 'Key ("odd ""id")=(7) is still referenced from table "orders".';
  const conflicts: [code: string, detail: string, pointer: string | undefined, fault?: string][] = [
    ['23503', missing, '/age', missing],
    ['23503', referenced, '/odd "id', referenced],
    ['23505', 'Key (name)=(x) already exists.', '/name'],
    ['23505', 'Schlüssel »(name)=(x)« existiert bereits.', '/name'],
    ['23505', 'Key ("a/""B")=(7) already exists.', '/a~1"B'],
    ['23505', 'Key (lower(age))=((b)=(c)) already exists.', undefined],
  ];
  for (const [code, detail, pointer, fault] of conflicts) {
    test(`${code} with «${detail}» names ${pointer ?? 'no column'}`, () => {
      const { message, extras } = toProblem(failure(code, { detail }));
      const errors = pointer ? [{ pointer, detail: fault ?? 'is taken' }] : [];
      assert.deepEqual([message, extras.errors], [fault ?? `text of ${code}`, errors]);
      assert.equal(extras.details, detail);
    });
  }
});

test('problemAnswer() has the members of RFC 9457 and of PostgREST', () => {
  const headers = { Allow: 'GET' };
  const problem = new Problem(405, 'PGRST117', 'not here', 'Use GET.', { headers });
  const { body, ...answer } = problemAnswer(problem);
  assert.deepEqual(answer, {
    status: 405,
    headers: { 'Content-Type': 'application/problem+json', Allow: 'GET' },
  });
  assert.deepEqual(JSON.parse(body), {
    ...{ type: 'about:blank', title: 'Method Not Allowed', status: 405, detail: 'not here' },
    ...{ code: 'PGRST117', message: 'not here', details: null, hint: 'Use GET.' },
  });
});

test('toFaults() has a pointer for each fault, unknown members too', () => {
  const schema = z.strictObject({ a: z.array(z.object({ 'b/c': z.int('must be 1') })) });
  const { error } = schema.safeParse({ a: [{ 'b/c': 'x' }], 'd~': 1, toString: 1 });
  assert.deepEqual(toFaults(error as z.ZodError, '/0'), [
    { pointer: '/0/a/0/b~1c', detail: 'must be 1' },
    { pointer: '/0/d~0', detail: 'cannot be set' },
    { pointer: '/0/toString', detail: 'cannot be set' },
  ]);
});

test('unprocessable() has at most 100 faults and 500 characters', () => {
  const faults = Array.from({ length: 200 }, (_, at) => ({ pointer: `/${at}`, detail: 'is bad' }));
  const { status, message, extras } = unprocessable(faults);
  assert.deepEqual([status, message.length, extras.errors?.length], [422, 500, 100]);
  assert.match(message, /^\/0 is bad; \/1 is bad; /);
});
