// Whether the page rests: nothing is being run for it, and no other page has been asked for.

/** What a script sends by itself waits for this: sent while the user goes to another page, it would call them back. */
export function calm() {
  const state = document.querySelector("[data-testid=stApp]")?.dataset.testScriptState;
  return state === undefined || state === "notRunning";
}
