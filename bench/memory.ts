/** The resident memory of the service's own process, in MB. */
import { drive } from './load.ts';
import { memoryOf, resetPeak, type Service, startOurs } from './services.ts';
import { FEW, OURS, type Stage } from './stage.ts';
import { download, LISTS, READ } from './works.ts';

/** At rest after its start; at most under load; at most while the large table is streamed. */
export type Memory = { idle: number; loaded: number; streaming: number };

export const MOST: Memory = { idle: 110, loaded: 200, streaming: 200 };

/** Each of a new process, so that nothing but the named work has made it grow. */
export async function measureMemory({ scale, few, many, guest }: Stage): Promise<Memory> {
  const { rows, seconds } = scale;
  const one = await guest(startOurs(OURS, few.url));
  const [pid = 0] = one.pids;
  const idle = await memoryOf(pid, 'VmRSS');
  const loaded = await peakDuring(one, async () => {
    for (const request of [READ, LISTS])
      await drive({ url: one.url, request, rows: FEW, connections: 64, seconds: 2 * seconds });
  });
  const other = await guest(startOurs(OURS, (await many()).url));
  const streaming = await peakDuring(other, async () => {
    for (const accept of ['application/x-ndjson', 'text/csv']) await download(other, accept, rows);
  });
  return { idle, loaded, streaming };
}

async function peakDuring(service: Service, work: () => Promise<void>): Promise<number> {
  const [pid = 0] = service.pids;
  await resetPeak(pid);
  await work();
  return memoryOf(pid, 'VmHWM');
}
