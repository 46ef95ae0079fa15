/**
 * What is in the image, and what is known to be wrong with it: writes .pipeline/sbom.json
 * (CycloneDX) and fails on a serious vulnerability that has a fix.
 *
 *     npm run scan -- IMAGE:TAG
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { ask, state, step } from './commands.ts';

const SERIOUS = ['CRITICAL', 'HIGH'];

step(([image = '']) => {
  mkdirSync(state, { recursive: true });
  const bill = describe(image);
  writeFileSync(`${state}/sbom.json`, JSON.stringify(bill, null, 2));
  console.log(`${bill.components.length} components, listed in ${state}/sbom.json`);
  const serious = scan(image);
  for (const one of serious) console.error(one);
  if (serious.length > 0) throw new Error(`${serious.length} serious faults that have a fix`);
});

/** The bill of npm's packages, and Debian's added to it. */
function describe(image: string) {
  const npm = ask('npm', ['sbom', '--omit=dev', '--sbom-format=cyclonedx']);
  const bill: { components: object[] } = JSON.parse(npm);
  const how = ['run', '--rm', '--entrypoint', 'dpkg-query', image, '--show'];
  const debian = ask('docker', how).split('\n');
  for (const [name, version] of debian.map((line) => line.split(/(?::\w+)?\t/))) {
    const purl = `pkg:deb/debian/${name}@${encodeURIComponent(version ?? '')}`;
    bill.components.push({ type: 'library', name, version, purl, 'bom-ref': purl });
  }
  return bill;
}

type Finding = { noteName: string; vulnerability: Vulnerability };
type Vulnerability = {
  effectiveSeverity: string;
  packageIssue: { affectedPackage: string; fixedVersion?: { kind: string; fullName?: string } }[];
};

/** On-Demand Scanning by Artifact Analysis, before anything is pushed. */
function scan(image: string): string[] {
  const images = ['artifacts', 'docker', 'images'];
  const id = ask('gcloud', [...images, 'scan', image, '--format=value(response.scan)']);
  const listed = ask('gcloud', [...images, 'list-vulnerabilities', id, '--format=json']);
  const found: Finding[] = JSON.parse(listed);
  return found.flatMap(({ noteName, vulnerability: { effectiveSeverity, packageIssue } }) => {
    const fixable = packageIssue.filter(({ fixedVersion }) => fixedVersion?.kind === 'NORMAL');
    if (!SERIOUS.includes(effectiveSeverity) || fixable.length === 0) return [];
    const fixes = fixable.map(({ affectedPackage, fixedVersion }) => {
      return `${affectedPackage} ${fixedVersion?.fullName}`;
    });
    return [`${effectiveSeverity} ${noteName.split('/').at(-1)}: fixed in ${fixes.join(', ')}`];
  });
}
