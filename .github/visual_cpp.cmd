@rem Tells the steps that follow where Visual C++ has its headers, libraries and tools.
@echo off
set "find=%ProgramFiles(x86)%\Microsoft Visual Studio\Installer\vswhere.exe"
for /f "usebackq delims=" %%i in (`"%find%" -latest -products * -property installationPath`) do set "vs=%%i"
call "%vs%\VC\Auxiliary\Build\vcvars64.bat" || exit /b 1
echo INCLUDE=%INCLUDE%>>"%GITHUB_ENV%"
echo LIB=%LIB%>>"%GITHUB_ENV%"
echo %WindowsSdkVerBinPath%x64>>"%GITHUB_PATH%"
