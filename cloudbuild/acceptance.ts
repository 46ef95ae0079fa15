/**
 * Runs the contract checks against a deployment, one line per check; exit code 1 where one fails.
 *
 *     npm run acceptance -- URL [--token T]     or TOKEN in the environment, where a token is needed
 *
 * The rows that it makes are removed at the end, whatever failed.
 */
import { checks } from '../test/contract.ts';
import { openTables, readCommand } from '../test/deployment.ts';

const results: boolean[] = [];

async function attempt(name: string, run: () => Promise<unknown>): Promise<void> {
  const fault = await run().then(
    () => undefined,
    (error: unknown) => (error instanceof Error ? error.message : String(error)),
  );
  results.push(fault === undefined);
  if (fault === undefined) console.log(`ok - ${name}`);
  else console.log(`not ok - ${name}\n    ${fault.replaceAll('\n', '\n    ')}`);
}

await attempt('the deployment describes its tables', async () => {
  const { url, token } = readCommand(process.argv.slice(2), process.env);
  for (const table of await openTables(url, token)) {
    console.log(`# ${table.list}`);
    if (!table.secured.write) console.log('# writes are open, so the checks of tokens are skipped');
    const known = checks.filter(({ when }) => when(table));
    for (const { name, run } of known) await attempt(name, () => run(table));
    await attempt('no row is left', table.removeMade);
  }
});
const passed = results.filter(Boolean).length;
console.log(`acceptance: ${passed} passed, ${results.length - passed} failed`);
process.exitCode = passed === results.length ? 0 : 1;
