/** One JSON line per event on stdout. */
import { type Logger, pino } from 'pino';

export function openLog(level: string): Logger {
  const formatters = { level: (name: string) => ({ level: name }) };
  return pino({ level, base: { pid: process.pid }, formatters });
}
